"""What is measured, one function a question; each adds one round of one subject to its measures.

Owns: the load of each question and how a figure comes out of times, counters and /proc.
Must not know: how often and in which order it is called.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.fake.handle import FakeHandle
from bench.gateway.client import Client, Exchange, plain_requests_per_s
from bench.gateway.figures import Measure
from bench.gateway.subjects import Subject

RATE = 10.0  # tokens a second of a stream: about what a Pi makes
MANY = 2000  # engine slots, where the engine's own queue must not matter
BURST, SLOTS, QUEUE = 64, 4, 8
REFUSED = 429


@dataclass(frozen=True)
class Sizes:
    """How much load a round takes. Seconds are of one subject."""

    requests: int = 40
    stream_s: float = 4.0
    crowd_s: float = 3.0
    full_speed_tokens: int = 1500
    plain_s: float = 1.5
    leavings: int = 4
    silence_s: float = 1.5
    slow_tokens: int = 8


QUICK = Sizes(
    requests=12,
    stream_s=1.2,
    crowd_s=0.8,
    full_speed_tokens=600,
    plain_s=0.5,
    leavings=3,
    silence_s=0.3,
    slow_tokens=3,
)


@dataclass
class Measures:
    """Everything measured, in the order in which it is shown; and what is counted rather than measured."""

    added_ttft: Measure = field(default_factory=lambda: Measure("added TTFT", "ms", (0.5, 0.95, 0.99)))
    request_cpu: Measure = field(default_factory=lambda: Measure("CPU a request of 2 tokens", "ms"))
    delay: dict[int, Measure] = field(
        default_factory=lambda: {
            n: Measure(f"delay a token, {n} stream{'s' if n > 1 else ''}", "ms", (0.5, 0.95, 0.99)) for n in (1, 4, 50)
        }
    )
    token_cpu: Measure = field(default_factory=lambda: Measure("CPU of 1000 tokens, 4 streams of 10/s", "ms"))
    busy_cpu: Measure = field(default_factory=lambda: Measure("CPU of 1000 tokens, 8 streams at full speed", "ms"))
    throughput: Measure = field(default_factory=lambda: Measure("8 streams at full speed", "tokens/s"))
    plain: Measure = field(default_factory=lambda: Measure("plain requests", "1/s"))
    leave_stream: Measure = field(default_factory=lambda: Measure("left mid-stream: seen by the engine after", "ms"))
    leave_stream_tokens: Measure = field(default_factory=lambda: Measure("left mid-stream: made after", "tokens"))
    leave_prefill: Measure = field(default_factory=lambda: Measure("left in prefill: seen by the engine after", "ms"))
    leave_prefill_tokens: Measure = field(default_factory=lambda: Measure("left in prefill: made after", "tokens"))
    refusal: Measure = field(default_factory=lambda: Measure("time to the 429, 64 at once", "ms", (0.5, 0.99)))
    ready: Measure = field(default_factory=lambda: Measure("start to ready", "s"))
    idle_pss: Measure = field(default_factory=lambda: Measure("PSS idle", "MiB"))
    crowd_pss: dict[int, Measure] = field(
        default_factory=lambda: {n: Measure(f"PSS under {n} slow streams", "MiB") for n in (200, 500)}
    )
    completed: dict[int, Measure] = field(
        default_factory=lambda: {n: Measure(f"complete of {n} slow streams", "streams") for n in (200, 500)}
    )
    bursts: dict[str, list[dict[str, int]]] = field(default_factory=dict)

    def all(self) -> list[Measure]:
        measures: list[Measure] = []
        for value in vars(self).values():
            if isinstance(value, Measure):
                measures.append(value)
            elif isinstance(value, dict):
                measures += [each for each in value.values() if isinstance(each, Measure)]
        return measures


class Bench:
    """The engine, the client and the sizes that every question needs."""

    def __init__(self, engine: FakeHandle, sizes: Sizes) -> None:
        self.engine, self.sizes = engine, sizes
        self.client = Client()
        self.measures = Measures()

    def ttft(self, subject: Subject) -> None:
        """Requests one after the other, each with a short prefill, so that everything has gone to sleep.

        Added is the time from sending to the first token's arrival, less what the engine itself took from the
        request's arrival to that token. The same of the engine asked directly is taken off at the end.
        """
        self.engine.turn(prefill_s=0.03, text="time", tokens_per_s=0, parallel=MANY)
        request, exchanges = subject.request(2), []
        before = subject.cpu_ms()
        for _ in range(self.sizes.requests):
            exchange = self.client.connect(subject.port)
            self.client.run(0.005)  # the server's accept is not part of it
            self.client.send(exchange, request)
            self.client.run_until_ended([exchange], 10)
            self.client.leave(exchange)
            exchanges.append(exchange)
        used = subject.cpu_ms() - before
        seen = self.engine.seen(last=len(exchanges))["requests"]
        added = [added_ms(exchange, request) for exchange, request in zip(exchanges, seen, strict=True)]
        self.measures.added_ttft.add(subject.name, added)
        if subject.pid:
            self.measures.request_cpu.add(subject.name, [used / len(exchanges)])

    def delay(self, subject: Subject, streams: int) -> None:
        """Streams of RATE tokens a second, begun evenly spread over a token's time."""
        seconds = self.sizes.crowd_s if streams > 10 else self.sizes.stream_s
        self.engine.turn(prefill_s=0, text="time", tokens_per_s=RATE, parallel=MANY)
        request = subject.request(int(RATE * (seconds + 1)))
        exchanges = []
        for _ in range(streams):
            exchanges.append(self.client.ask(subject.port, request))
            self.client.run(1 / RATE / streams)
        self.client.run(0.3)
        cpu, tokens = subject.cpu_ms(), count_tokens(exchanges)
        begin_ns = time.monotonic_ns()
        self.client.run(seconds)
        cpu, tokens = subject.cpu_ms() - cpu, count_tokens(exchanges) - tokens
        self.client.leave_all()
        delays = [(got - sent) / 1e6 for e in exchanges for got, sent in e.tokens if sent > begin_ns]
        self.measures.delay[streams].add(subject.name, delays)
        if streams == 4 and subject.pid:
            self.measures.token_cpu.add(subject.name, [cpu / tokens * 1000])
        self.wait_until_idle()

    def full_speed(self, subject: Subject, streams: int = 8) -> None:
        self.engine.turn(prefill_s=0, text="time", tokens_per_s=0, parallel=MANY)
        request = subject.request(self.sizes.full_speed_tokens)
        exchanges = [self.client.connect(subject.port) for _ in range(streams)]
        self.client.run(0.05)
        cpu = subject.cpu_ms()
        for exchange in exchanges:
            self.client.send(exchange, request)
        self.client.run_until_ended(exchanges, 60)
        cpu = subject.cpu_ms() - cpu
        self.client.leave_all()
        tokens = count_tokens(exchanges)
        seconds = (max(e.ended_ns for e in exchanges) - min(e.sent_ns for e in exchanges)) / 1e9
        self.measures.throughput.add(subject.name, [tokens / seconds])
        if subject.pid:
            self.measures.busy_cpu.add(subject.name, [cpu / tokens * 1000])

    def plain(self, subject: Subject) -> None:
        rate = plain_requests_per_s(subject.port, subject.plain, self.sizes.plain_s)
        self.measures.plain.add(subject.name, [rate])

    def leave_stream(self, subject: Subject) -> None:
        """Clients that close half a second into their stream, between two tokens."""
        self.engine.turn(prefill_s=0, text="time", tokens_per_s=RATE, parallel=MANY)
        self._leave(subject, 0.55, self.measures.leave_stream, self.measures.leave_stream_tokens)

    def leave_prefill(self, subject: Subject) -> None:
        """Clients that close while the engine prefills; it would go on for `silence_s` seconds."""
        self.engine.turn(prefill_s=0.3 + self.sizes.silence_s, text="time", tokens_per_s=RATE, parallel=MANY)
        self._leave(subject, 0.3, self.measures.leave_prefill, self.measures.leave_prefill_tokens)

    def _leave(self, subject: Subject, after_s: float, seen_ms: Measure, tokens_after: Measure) -> None:
        exchanges = []
        for _ in range(self.sizes.leavings):
            exchanges.append(self.client.ask(subject.port, subject.request(200)))
            self.client.run(0.02)
        self.client.run(after_s)
        for exchange in exchanges:
            self.client.leave(exchange)
            time.sleep(0.011)
        self.wait_until_idle()
        seen = self.engine.seen(last=len(exchanges))["requests"]
        pairs = list(zip(exchanges, seen, strict=True))
        seen_ms.add(subject.name, [(engine["ended_ns"] - gone.closed_ns) / 1e6 for gone, engine in pairs])
        tokens_after.add(subject.name, [made_after(engine, gone.closed_ns) for gone, engine in pairs])

    def burst(self, subject: Subject) -> None:
        """BURST requests at once: all connected first, then sent in one go."""
        self.engine.turn(prefill_s=0, text="time", tokens_per_s=RATE, parallel=SLOTS)
        request = subject.request(4)
        exchanges = [self.client.connect(subject.port) for _ in range(BURST)]
        self.client.run(0.2)
        for exchange in exchanges:
            self.client.send(exchange, request)
        self.client.run_until_ended(exchanges, 30)
        self.client.leave_all()
        refused = [e for e in exchanges if e.status == REFUSED]
        counts = {
            "answered": sum(e.status == 200 and e.ended == "done" and len(e.tokens) == 4 for e in exchanges),
            "refused": len(refused),
            "with Retry-After": sum(e.has_header("Retry-After") for e in refused),
        }
        self.measures.bursts.setdefault(subject.name, []).append(counts)
        if refused:
            self.measures.refusal.add(subject.name, [(e.ended_ns - e.sent_ns) / 1e6 for e in refused])

    def memory(self, subject: Subject) -> None:
        """PSS after a first request, then with crowds of streams of one token a second."""
        self.engine.turn(prefill_s=0, text="time", tokens_per_s=0, parallel=MANY)
        first = self.client.ask(subject.port, subject.request(2))
        self.client.run_until_ended([first], 10)
        self.client.leave(first)
        self.client.run(0.5)
        self.measures.idle_pss.add(subject.name, [subject.pss_mib()])
        self.engine.turn(tokens_per_s=1.0)
        for streams in self.measures.crowd_pss:
            self._crowd(subject, streams)

    def _crowd(self, subject: Subject, streams: int) -> None:
        request = subject.request(self.sizes.slow_tokens)
        exchanges = []
        for _ in range(streams):
            exchanges.append(self.client.ask(subject.port, request))
            self.client.run(0.002)
        self.client.run(10, lambda: all(e.tokens for e in exchanges))
        self.client.run(0.5)
        self.measures.crowd_pss[streams].add(subject.name, [subject.pss_mib()])
        self.client.run_until_ended(exchanges, self.sizes.slow_tokens + 30)
        complete = sum(e.ended == "done" and len(e.tokens) == self.sizes.slow_tokens for e in exchanges)
        self.measures.completed[streams].add(subject.name, [complete])
        self.client.leave_all()

    def wait_until_idle(self, timeout_s: float = 10.0) -> None:
        """Until the engine has no request left, that of a client that left included."""
        deadline = time.monotonic() + timeout_s
        while self.engine.state()["running"] and time.monotonic() < deadline:
            time.sleep(0.02)


def added_ms(exchange: Exchange, seen: dict[str, Any]) -> float:
    """Time to the first token, less what the engine took to make it."""
    got_ns, _ = exchange.tokens[0]
    engine_ns = seen["first_token_ns"] - seen["received_ns"]
    return float(got_ns - exchange.sent_ns - engine_ns) / 1e6


def over_the_engine(measure: Measure, engine: str = "engine") -> Measure:
    """The measure less the engine's own median of the same round."""
    own = [median(values) for values in measure.samples.get(engine, [])]
    net = Measure(measure.name, measure.unit, measure.percentiles)
    for subject, rounds in measure.samples.items():
        if subject != engine:
            for values, base in zip(rounds, own, strict=False):
                net.add(subject, [value - base for value in values])
    return net


def count_tokens(exchanges: Sequence[Exchange]) -> int:
    return sum(len(exchange.tokens) for exchange in exchanges)


def made_after(seen: dict[str, Any], closed_ns: int) -> int:
    """Tokens that the engine sent after the client had closed."""
    return sum(at_ns > closed_ns for at_ns in seen["last_token_ns"])
