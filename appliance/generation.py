"""One generation, from admission to its end: what happens, as events. How they look on the wire is generate.py's."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from gevent.event import Event

from appliance.admission import Admission, State, Ticket
from appliance.clientwatch import ClientWatch
from appliance.config import Config
from appliance.engine import Engine
from appliance.errors import (
    ApplianceError,
    ClientGone,
    EngineFailed,
    GenerationTimeout,
    WaitTimeout,
)
from appliance.eventstream import SILENCE, Silence
from appliance.metrics import Metrics
from appliance.protocol import RETRY_S, Prompt, Record
from appliance.residency import Residency

QUEUED_EVERY_S = 1.0
DEADLINE_HEADER = "X-Request-Timeout-S"
DEADLINE_LIMIT_S = 7200.0

log = logging.getLogger("appliance")


@dataclass(frozen=True)
class Order:
    """What is asked for, and by whom. `client`: its socket, None in a simulated request."""

    prompt: Prompt
    key_id: str
    request_id: str
    client: Any
    deadline_s: float | None


@dataclass(frozen=True)
class Queued:
    """Still waiting: at `position` (1 is next), for about `eta_s` seconds; None while nothing was measured."""

    position: int
    eta_s: int | None


@dataclass(frozen=True)
class Done:
    """The end of an answer, with what it took.

    cached_tokens, load_ms, prefill_ms, decode_ms: the engine's own; None where it does not say. Its prompt_tokens
    count the cached ones, its prefill time is without them, and its decode time is from the first token to the last.
    """

    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    queue_ms: float
    ttft_ms: float | None
    tokens_per_second: float | None
    cached_tokens: int | None = None
    load_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "finish_reason": self.finish_reason,
            "queue_ms": self.queue_ms,
            "ttft_ms": self.ttft_ms,
            "tokens_per_second": self.tokens_per_second,
            "cached_tokens": self.cached_tokens,
            "load_ms": self.load_ms,
            "prefill_ms": self.prefill_ms,
            "decode_ms": self.decode_ms,
        }


Happening = list[str] | Queued | Silence | Done  # a list: the tokens that arrived together, mostly one


class Generations:
    """Runs generations over the node's admission, engine and model."""

    def __init__(
        self, config: Config, admission: Admission, engine: Engine, residency: Residency, metrics: Metrics
    ) -> None:
        self._config = config
        self._admission = admission
        self._engine = engine
        self._residency = residency
        self._metrics = metrics

    def answer(self, order: Order) -> Generator[Happening, None, None]:
        """The events of one generation. All it takes is taken in here, so closing it gives all back.

        1. A place: a slot, or the line. 2. The line. 3. The model in memory. 4. The engine's records. 5. Done.
        Raises: ApplianceError, at any point; ClientGone when the client left.
        """
        arrived = time.monotonic()
        outcome, done, level = "internal_error", None, logging.DEBUG  # refusals may come by the hundred a second
        try:
            with (
                ClientWatch(order.client) as watch,
                self._admission.enter(order.key_id, order.deadline_s) as ticket,
            ):
                level = logging.INFO
                yield from self._wait_in_line(ticket, watch, order.deadline_s)
                ends_at = min(
                    ticket.started_at + self._config.generation_timeout_s,
                    arrived + (order.deadline_s or DEADLINE_LIMIT_S),
                )
                yield from wait_for_model(self._residency, ticket, watch, self._config.sse_ping_s, ends_at)
                last, first_at = yield from self._relay(order.prompt, ticket, watch, ends_at)
                done = self._done(last, ticket.started_at - ticket.entered_at, first_at and first_at - arrived)
                outcome = done.finish_reason
            yield done
        except ApplianceError as error:
            outcome = error.code
            raise
        except GeneratorExit:
            outcome = outcome if done else ClientGone.code
            raise
        finally:
            self._metrics.generations.labels(outcome).inc()
            summary = _summary(done, arrived)
            log.log(level, "generate id=%s key=%s outcome=%s %s", order.request_id, order.key_id, outcome, summary)

    def _wait_in_line(self, ticket: Ticket, watch: ClientWatch, deadline_s: float | None) -> Iterator[Happening]:
        """Events while the ticket waits; ends when it runs. Raises: WaitTimeout, its refusal, ClientGone."""
        if ticket.state is State.RUNNING:
            return
        watch.call_when_gone(ticket.woken.set)
        limit_s = min(self._config.max_queue_wait_s, deadline_s or DEADLINE_LIMIT_S)
        told, told_at = None, -math.inf
        sent_at = time.monotonic()
        while ticket.state is State.WAITING:
            now = time.monotonic()
            eta_s = ticket.eta_s
            queued = Queued(ticket.position, None if eta_s is None else math.ceil(eta_s))
            if queued != told and now - told_at >= QUEUED_EVERY_S:
                told, told_at, sent_at = queued, now, now
                yield queued
            elif now - sent_at >= self._config.sse_ping_s:
                sent_at = now
                yield SILENCE
            left_s = ticket.entered_at + limit_s - now
            if left_s <= 0:
                raise WaitTimeout(
                    f"No slot became free within {limit_s:g} s; try again later.",
                    retry_after_s=self._admission.retry_after_s(),
                )
            ticket.woken.wait(min(QUEUED_EVERY_S, self._config.sse_ping_s, left_s))
            if watch.is_gone:
                raise ClientGone("The client has left the line.")
        if ticket.refusal is not None:
            raise ticket.refusal

    def _relay(
        self, prompt: Prompt, ticket: Ticket, watch: ClientWatch, ends_at: float
    ) -> Generator[Happening, None, tuple[Record, float | None]]:
        """The engine's tokens, as they come.

        Returns: the engine's last record, and when its first token came (monotonic seconds; None without any).
        Raises: what the engine's stream raises, GenerationTimeout, ClientGone, NotReady when the worker shuts down.
        """
        first_at = None
        stream = self._engine.generate(prompt)
        try:
            watch.call_when_gone(stream.abort)
            ticket.call_when_cut_off(stream.abort)
            while True:
                records = stream.receive(min(self._config.sse_ping_s, max(ends_at - time.monotonic(), 0.0)))
                if texts := [record.text for record in records if record.text]:
                    first_at = first_at or time.monotonic()
                    yield texts
                if stream.is_ended:
                    return records[-1], first_at
                if time.monotonic() > ends_at:
                    raise _timed_out()
                if not records:
                    yield SILENCE
        except EngineFailed:
            if watch.is_gone:
                raise ClientGone("The client has left.") from None
            if ticket.refusal is not None:
                raise ticket.refusal from None
            raise
        finally:
            unread = stream.close()
            if watch.is_gone:
                self._metrics.tokens_after_client_left.inc(unread)

    def _done(self, last: Record, queue_s: float, ttft_s: float | None) -> Done:
        self._residency.used()
        self._metrics.tokens.labels("input").inc(last.prompt_eval_count)
        self._metrics.tokens.labels("output").inc(last.eval_count)
        self._metrics.queue_wait.observe(queue_s)
        if ttft_s is not None:
            self._metrics.ttft.observe(ttft_s)
        if last.tokens_per_s:
            self._metrics.tpot.observe(1 / last.tokens_per_s)
        return Done(
            prompt_tokens=last.prompt_eval_count,
            completion_tokens=last.eval_count,
            finish_reason="length" if last.done_reason == "length" else "stop",
            queue_ms=_ms(queue_s),
            ttft_ms=None if ttft_s is None else _ms(ttft_s),
            tokens_per_second=last.tokens_per_s and round(last.tokens_per_s, 2),
            cached_tokens=last.prompt_eval_cached_count,
            load_ms=_ms(last.load_duration / 1e9) if last.load_duration else None,
            prefill_ms=_ms(last.prompt_eval_duration / 1e9) if last.prompt_eval_duration else None,
            decode_ms=_ms(last.eval_duration / 1e9) if last.eval_duration else None,
        )


def wait_for_model(
    residency: Residency, ticket: Ticket, watch: ClientWatch, ping_s: float, ends_at: float
) -> Iterator[Silence]:
    """Events while the service loads the model, where it is not in memory; until `ends_at` (monotonic seconds).

    Raises: what the load raised, GenerationTimeout, ClientGone, the ticket's refusal when its slot is taken away.
    """
    load = residency.ensure_loaded()
    if load is None:
        return
    ended = Event()
    load.rawlink(lambda _: ended.set())
    watch.call_when_gone(ended.set)
    ticket.call_when_cut_off(ended.set)
    while not load.ready():
        ended.wait(min(ping_s, max(ends_at - time.monotonic(), 0.0)))
        if watch.is_gone:
            raise ClientGone("The client has left while the model was loading.")
        if ticket.refusal is not None:
            raise ticket.refusal
        if not load.ready() and time.monotonic() > ends_at:
            raise _not_loaded_in_time()
        if not load.ready():
            yield SILENCE
    if isinstance(load.value, ApplianceError):
        raise load.value.with_traceback(None)  # one error for all who waited: it must not gather their frames


def _not_loaded_in_time() -> GenerationTimeout:
    return GenerationTimeout(
        f"The model was not in memory in time ({DEADLINE_HEADER}, or the node's GENERATION_TIMEOUT_S); "
        "its load goes on, so try again later.",
        retry_after_s=RETRY_S,
    )


def _timed_out() -> GenerationTimeout:
    return GenerationTimeout(
        f"The answer was not complete in time ({DEADLINE_HEADER}, or the node's GENERATION_TIMEOUT_S); "
        "ask for fewer max_tokens."
    )


def _summary(done: Done | None, arrived: float) -> str:
    total_ms = _ms(time.monotonic() - arrived)
    if done is None:
        return f"total_ms={total_ms:.0f}"
    return (
        f"prompt_tokens={done.prompt_tokens} completion_tokens={done.completion_tokens} queue_ms={done.queue_ms:.0f} "
        f"ttft_ms={done.ttft_ms or 0:.0f} tokens_per_s={done.tokens_per_second or 0:.1f} total_ms={total_ms:.0f}"
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
