"""One stage of a run: a load, kept up until enough was measured. Closed loop and open loop.

Owns: when requests are sent. In an open loop a request has its planned time, and whoever is late, the node or this
process, its latency counts from then; a loop that waits for answers before it sends would leave out just the requests
that suffer most (coordinated omission). Must not know: HTTP, files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import gevent
from gevent.pool import Group

from bench.running.client import BenchError
from bench.running.samples import ClosedLoop, OpenLoop, Sample, Stage
from bench.running.stream import Reply
from bench.running.trace import Part, Prompt, Trace, arrivals

GONE_AFTER = 5  # failures in a row that no node answered
PAUSE_S, PAUSE_LIMIT_S = 1.0, 10.0


class NodeGone(BenchError):
    """So many requests in a row got no answer that the node counts as gone."""

    may_pass = True


class TraceRefused(BenchError):
    """The node says that what is asked is wrong: it would say so of every request."""


class Clock(Protocol):
    def now(self) -> float: ...
    def sleep_until(self, at: float) -> None: ...


class Monotonic:
    """The real one, in gevent."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, at: float) -> None:
        gevent.sleep(max(0.0, at - time.monotonic()))


@dataclass
class Loading:
    """What one stage needs.

    ask: sends a prompt and returns its reply, in the clock's seconds.
    began_at: when the run began, from which its samples count.
    warm_up, requests: how many of each this stage needs; `requests` of them measured.
    numbers: the first number of each part, beyond 0 in a stage that is measured anew.
    on_sample: told of each sample.
    """

    ask: Callable[[Prompt], Reply]
    trace: Trace
    clock: Clock
    began_at: float
    warm_up: int
    requests: int
    duration_s: float | None = None
    numbers: dict[Part, int] = field(default_factory=dict)
    on_sample: Callable[[Sample], None] = lambda sample: None

    def prompts(self, stage: int) -> Iterator[Prompt]:
        """Warm-ups, then what is measured, without a pause between: the measuring finds the load kept up."""
        parts: tuple[tuple[Part, int], ...] = ("warm_up", self.warm_up), ("measured", self.requests)
        for part, count in parts:
            first = self.numbers.get(part, 0)
            for number in range(first, first + count):
                yield self.trace.prompt(stage, part, number)


def keep_up(loading: Loading, stage: Stage) -> None:
    """Run the stage to its end, its samples in the order of their ends.

    Raises: WrongKey, NodeGone; the samples until then are in the stage.
    """
    run = _StageRun(loading, stage)
    try:
        if isinstance(stage.load, OpenLoop):
            run.open_loop(stage.load)
        else:
            run.closed_loop(stage.load)
    finally:
        run.group.kill()
    if run.error is not None:
        raise run.error


class _StageRun:
    def __init__(self, loading: Loading, stage: Stage) -> None:
        self.group = Group()
        self.error: BenchError | None = None
        self._loading, self._stage, self._clock = loading, stage, loading.clock
        self._unanswered = 0
        self._ends_at = self._clock.now() + loading.duration_s if loading.duration_s else float("inf")

    def closed_loop(self, load: ClosedLoop) -> None:
        prompts = self._loading.prompts(self._stage.number)
        for _ in range(load.concurrency):
            self.group.spawn(self._client, prompts)
        self.group.join()

    def open_loop(self, load: OpenLoop) -> None:
        """Each request is sent at its time by a greenlet of its own; nothing waits for an answer."""
        begin = self._clock.now()
        prompts = list(self._loading.prompts(self._stage.number))
        seed = f"{self._loading.trace.seed}/{self._stage.number}"
        for prompt, offset in zip(prompts, arrivals(load.arrivals, load.rate_per_s, len(prompts), seed), strict=True):
            self._clock.sleep_until(begin + offset)
            if self._is_over():
                break
            self.group.spawn(self._answer, prompt, begin + offset)
        self._note_full_until()
        self.group.join()

    def _client(self, prompts: Iterator[Prompt]) -> None:
        """1. Take the next prompt; none left, or the time is over: the load is full no longer. 2. Ask. 3. After a
        failure wait as long as the node says, so that a node that refuses is not hammered."""
        while not self._is_over() and (prompt := next(prompts, None)):
            sample = self._answer(prompt, self._clock.now())
            if sample is not None and sample.failure is not None:
                pause_s = min(sample.failure.retry_after_s or PAUSE_S, PAUSE_LIMIT_S)
                self._clock.sleep_until(self._clock.now() + pause_s)
        self._note_full_until()

    def _answer(self, prompt: Prompt, planned_at: float) -> Sample | None:
        try:
            reply = self._loading.ask(prompt)
        except BenchError as error:
            self._fail(error)
            return None
        sample = _sample(prompt, planned_at, reply, self._loading.began_at)
        self._stage.samples.append(sample)
        self._loading.on_sample(sample)
        self._judge(sample)
        return sample

    def _judge(self, sample: Sample) -> None:
        """1. A prompt or an option that the node refuses (422). 2. GONE_AFTER requests in a row without any answer."""
        failure = sample.failure
        if failure is not None and failure.status == 422:
            self._fail(TraceRefused(f"the node refuses what is asked: {failure.detail}"))
        if failure is None or failure.is_answer:
            self._unanswered = 0
            return
        self._unanswered += 1
        if self._unanswered >= GONE_AFTER:
            self._fail(
                NodeGone(f"{self._unanswered} requests in a row got no answer, the last: {failure} ({failure.detail})")
            )

    def _fail(self, error: BenchError) -> None:
        """End the stage now; by another greenlet, since this one is in the group."""
        if self.error is None:
            self.error = error
            gevent.spawn(self.group.kill)

    def _is_over(self) -> bool:
        return self.error is not None or self._clock.now() >= self._ends_at

    def _note_full_until(self) -> None:
        if self._stage.full_until_s is None:
            self._stage.full_until_s = round(self._clock.now() - self._loading.began_at, 5)


def _sample(prompt: Prompt, planned_at: float, reply: Reply, began_at: float) -> Sample:
    def since(at: float) -> float:
        return round(at - began_at, 5)

    return Sample(
        number=prompt.number,
        part=prompt.part,
        wanted_tokens=prompt.wanted_tokens,
        planned_s=since(planned_at),
        sent_s=since(reply.sent_at),
        ended_s=since(reply.ended_at),
        tokens_s=tuple(since(at) for at in reply.tokens_at),
        was_queued=reply.was_queued,
        counts=reply.counts,
        failure=reply.failure,
    )
