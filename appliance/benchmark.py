"""POST /benchmark: the node measures itself, alone, and recommends a profile. Reads top to bottom as one benchmark.

What is run and in which order is benchmark_plan's; what the figures mean and which setting wins, benchmark_report's.

A client that asks for events (`Accept: text/event-stream`) is told of each run and kept alive by comments. One that
does not gets one JSON answer at the end, minutes later and after perfect silence: a proxy in between, or the client's
own time limit, may give up before.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any

import falcon
import gevent
import msgspec
from gevent.event import Event
from msgspec import Meta

from appliance import benchmark_choice, benchmark_plan, benchmark_report, sse
from appliance.admission import Admission, State, Ticket
from appliance.benchmark_plan import Run
from appliance.benchmark_report import BenchmarkAnswer, Sample, Setting
from appliance.bodies import read_body
from appliance.clientwatch import ClientWatch
from appliance.config import Config
from appliance.engine import Engine
from appliance.errors import (
    ApplianceError,
    BenchmarkTimeout,
    ClientGone,
    EngineFailed,
    InvalidValue,
    PromptTooLong,
    WaitTimeout,
)
from appliance.eventstream import SILENCE, Silence, begin, frames
from appliance.generation import wait_for_model
from appliance.protocol import LoadOptions, Prompt, Record
from appliance.recordstream import RecordStream
from appliance.residency import Residency

TIME_LIMIT_S = 30 * 60  # so long a node may be taken from its users; 16 settings of a Pi fit
SETTINGS_LIMIT = 16
WARM_UP_TOKENS = 32  # enough to touch all weights and buffers; on a Pi a whole answer would cost half a minute a load
RESTORE_ATTEMPTS = 2
RESTORE_PAUSE_S = 1.0
SSE_TYPE, JSON_TYPE = "text/event-stream", "application/json"

log = logging.getLogger("appliance")


class BenchmarkRequest(msgspec.Struct, kw_only=True):
    """The body of POST /benchmark; the first contract's names, types and limits, and `threads` and `batch_sizes`."""

    prompt: Annotated[str, Meta(min_length=1, max_length=8192, description="What to answer in each run.")]
    system: Annotated[str, Meta(max_length=4096, description="Guides the model's behaviour.")] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2048, description="At most so many tokens a run.")] = 160
    temperature: Annotated[float, Meta(ge=0, le=2, description="Sampling temperature.")] = 0.2
    top_p: Annotated[float, Meta(ge=0, le=1, description="Nucleus sampling.")] = 0.9
    top_k: Annotated[int, Meta(ge=1, le=100, description="Sample from so many likeliest tokens.")] = 40
    runs: Annotated[int, Meta(ge=1, le=5, description="Measured runs a setting; warm-ups come on top.")] = 2
    context_sizes: (
        Annotated[
            list[Annotated[int, Meta(ge=128, le=131072)]],
            Meta(min_length=1, max_length=4, description="Values of N_CTX to measure; by default the node's."),
        ]
        | None
    ) = None
    threads: (
        Annotated[
            list[Annotated[int, Meta(ge=1, le=256)]],
            Meta(min_length=1, max_length=4, description="Values of N_THREADS to measure; by default the node's."),
        ]
        | None
    ) = None
    batch_sizes: (
        Annotated[
            list[Annotated[int, Meta(ge=8, le=4096)]],
            Meta(min_length=1, max_length=4, description="Values of N_BATCH to measure; by default the node's."),
        ]
        | None
    ) = None


@dataclass(frozen=True)
class Job:
    """One benchmark: the settings in the order of the answer, and the runs in the order of execution."""

    body: BenchmarkRequest
    settings: list[LoadOptions]
    runs: list[Run]
    seed: int

    def prompt(self, run: Run) -> Prompt:
        """The run's own prompt.

        Its unique words also begin the system prompt, which the engine reads first; where none is given they are one,
        in place of the model's own, whose tokens would come from the prefix cache in every run.
        """
        body, words = self.body, benchmark_plan.unique_words(self.seed, run.number)
        return Prompt(
            words + body.prompt,
            words + (body.system or ""),
            min(body.max_tokens, WARM_UP_TOKENS) if run.is_warm_up else body.max_tokens,
            {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k},
        )


@dataclass(frozen=True)
class Progress:
    """What is done now: `stage` is waiting, warming_up, measuring or restoring."""

    stage: str
    setting: Setting | None = None
    run: int = 0
    runs: int = 0
    best: dict[str, Any] | None = None
    eta_s: int | None = None


Happening = Progress | Silence | BenchmarkAnswer


class Benchmark:
    """The resource."""

    def __init__(self, config: Config, admission: Admission, engine: Engine, residency: Residency) -> None:
        self._config = config
        self._admission = admission
        self._engine = engine
        self._residency = residency

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        body = read_body(req, BenchmarkRequest, self._config.client_timeout_s)
        job = self._job(body)
        client = req.env.get("gunicorn.socket")
        events = self._answer(job, req.context.key.id, req.context.request_id, client)
        if wants_events(req):
            begin(req, resp, frames(events, _frame))
            return
        resp.media = msgspec.to_builtins(_last(events))

    def _job(self, body: BenchmarkRequest) -> Job:
        """Raises: InvalidValue for a value twice in a list, and for too many settings."""
        own = self._engine.options
        lists = {
            "context_sizes": body.context_sizes or [own.num_ctx],
            "threads": body.threads or [own.num_thread],
            "batch_sizes": body.batch_sizes or [own.num_batch],
        }
        for field, values in lists.items():
            if len(set(values)) < len(values):
                raise InvalidValue(
                    f"{field}: got {values}; expected each value once.",
                    field=field,
                    given=str(values),
                    allowed="distinct values",
                )
        settings = benchmark_plan.settings(*lists.values())
        if len(settings) > SETTINGS_LIMIT:
            raise _too_many_settings(lists)
        own_first = sorted(settings, key=lambda options: options != own)  # it is loaded already, and ends the schedule
        runs = benchmark_plan.schedule(own_first, body.runs)
        return Job(body, settings, runs, secrets.randbelow(10**benchmark_plan.DIGITS))

    def _answer(self, job: Job, key_id: str, request_id: str, client: Any) -> Generator[Happening, None, None]:
        """The events of one benchmark. All it takes is taken in here, so closing it gives all back.

        1. All slots, when those that run have finished. 2. The model present. 3. The runs. 4. The node's own options
        again, whatever happened: the slots are held until then, and a greenlet that no client can end does it.
        5. The answer.
        Raises: ApplianceError, at any point; ClientGone when the client left.
        """
        arrived, outcome = time.monotonic(), "internal_error"
        restoring = None
        try:
            with ClientWatch(client, self._config.client_timeout_s) as watch:
                ticket = self._admission.enter_exclusive(key_id)
                try:
                    yield from self._wait_alone(ticket, watch)
                    yield from wait_for_model(self._residency, ticket, watch, self._config.sse_ping_s)
                    try:
                        samples = yield from self._measure(job, ticket, watch)
                    finally:
                        restoring = gevent.spawn(self._restore, ticket)
                finally:
                    if restoring is None:
                        self._admission.leave(ticket)
                yield from self._wait_restored(restoring, watch)
                outcome = "done"
            yield self._report(job, samples)
        except ApplianceError as error:
            outcome = error.code
            raise
        except GeneratorExit:
            outcome = outcome if outcome == "done" else ClientGone.code
            raise
        finally:
            log.info(
                "benchmark id=%s key=%s outcome=%s settings=%d runs=%d total_ms=%.0f",
                request_id,
                key_id,
                outcome,
                len(job.settings),
                len(job.runs),
                (time.monotonic() - arrived) * 1000,
            )

    def _wait_alone(self, ticket: Ticket, watch: ClientWatch) -> Iterator[Happening]:
        """Events until nobody else runs. Raises: WaitTimeout, the ticket's refusal, ClientGone."""
        if ticket.state is State.RUNNING:
            return
        watch.call_when_gone(ticket.woken.set)
        yield Progress("waiting")
        limit_s = self._config.max_queue_wait_s
        while ticket.state is State.WAITING:
            left_s = ticket.entered_at + limit_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(
                    f"The running requests did not finish within {limit_s:g} s (MAX_QUEUE_WAIT_S); try again later.",
                    retry_after_s=limit_s,
                )
            was_woken = ticket.woken.wait(min(self._config.sse_ping_s, left_s))
            if watch.is_gone:
                raise ClientGone("The client has left before its benchmark began.")
            if not was_woken:
                yield SILENCE
        if ticket.refusal is not None:
            raise ticket.refusal

    def _measure(self, job: Job, ticket: Ticket, watch: ClientWatch) -> Generator[Happening, None, list[Sample]]:
        """All runs, one after the other. Raises: as `_run`, with the setting in the error."""
        samples: list[Sample] = []
        ends_at = time.monotonic() + TIME_LIMIT_S
        for run in job.runs:
            progress = _progress(job, run, samples)
            try:
                samples.append((yield from self._run(job.prompt(run), run, progress, ticket, watch, ends_at)))
                if run.is_warm_up:
                    self._check_context(run.options)
            except ClientGone:
                raise
            except PromptTooLong as error:
                raise _does_not_fit(error, run.options) from error
            except ApplianceError as error:
                error.extra.setdefault("setting", msgspec.to_builtins(Setting.of(run.options)))
                raise
        return samples

    def _run(
        self, prompt: Prompt, run: Run, progress: Progress, ticket: Ticket, watch: ClientWatch, ends_at: float
    ) -> Generator[Happening, None, Sample]:
        """One generation, timed.

        Raises: what the engine's stream raises, BenchmarkTimeout, ClientGone, NotReady when the node drains.
        """
        if watch.is_gone:
            raise ClientGone("The client has left its benchmark.")
        if ticket.refusal is not None:
            raise ticket.refusal
        started = time.monotonic()
        stream = self._engine.generate(prompt, run.options)
        try:
            watch.call_when_gone(stream.abort)
            ticket.call_when_cut_off(stream.abort)
            yield progress
            last, first_at = yield from self._read(stream, ends_at)
        except EngineFailed:
            if watch.is_gone:
                raise ClientGone("The client has left its benchmark.") from None
            if ticket.refusal is not None:
                raise ticket.refusal from None
            raise
        finally:
            stream.close()
        ended = time.monotonic()
        self._residency.used()
        ttft_s = (first_at or ended) - started  # without any text the first token was the end's
        return benchmark_report.sample(run.number, run.options, run.is_warm_up, ended - started, ttft_s, last)

    def _read(self, stream: RecordStream, ends_at: float) -> Generator[Happening, None, tuple[Record, float | None]]:
        """The stream to its end, with a sign of life every SSE_PING_S seconds.

        Returns: the engine's last record, and when its first token came (monotonic seconds; None without any).
        """
        first_at, told_at = None, time.monotonic()
        while True:
            records = stream.receive(self._config.sse_ping_s)
            now = time.monotonic()
            if first_at is None and any(record.text for record in records):
                first_at = now
            if stream.is_ended:
                return records[-1], first_at
            if now > ends_at:
                raise BenchmarkTimeout(
                    f"The benchmark was not done after {TIME_LIMIT_S // 60} minutes; ask for fewer settings, runs or "
                    "max_tokens."
                )
            if now - told_at >= self._config.sse_ping_s:
                told_at = now
                yield SILENCE

    def _check_context(self, options: LoadOptions) -> None:
        """Ollama cuts a context that is larger than the model was trained for, and says so only when asked.

        Raises: InvalidValue when it did.
        """
        for model in self._engine.loaded_models():
            size = model.context_length
            if self._engine.model in (model.name, model.model) and size is not None and size < options.num_ctx:
                raise InvalidValue(
                    f"context_sizes: got {options.num_ctx}, but the engine loads this model with at most {size}.",
                    field="context_sizes",
                    given=str(options.num_ctx),
                    allowed=f"at most {size}",
                )

    def _restore(self, ticket: Ticket) -> None:
        """Load the node's own options, then give the slots back; give them back also if that fails.

        After a failure the node is no worse off than after any other failure of its engine: what was known of it is
        forgotten, so /ready asks anew, and each request brings the node's own options with it.
        """
        try:
            for attempt in range(RESTORE_ATTEMPTS):
                if attempt:
                    gevent.sleep(RESTORE_PAUSE_S)
                try:
                    self._residency.load()
                    return
                except ApplianceError as error:
                    self._residency.forget()
                    log.warning("Loading the node's own options after a benchmark failed: %s", error.detail)
        finally:
            self._admission.leave(ticket)

    def _wait_restored(self, restoring: gevent.Greenlet[..., None], watch: ClientWatch) -> Iterator[Happening]:
        """Events until the slots are free again. Raises: ClientGone."""
        ended = Event()
        restoring.rawlink(lambda _: ended.set())
        watch.call_when_gone(ended.set)
        yield Progress("restoring", Setting.of(self._engine.options))
        while not restoring.ready():
            was_ended = ended.wait(self._config.sse_ping_s)
            if watch.is_gone:
                raise ClientGone("The client has left its benchmark.")
            if not was_ended:
                yield SILENCE

    def _report(self, job: Job, samples: list[Sample]) -> BenchmarkAnswer:
        profiles = []
        for options in job.settings:
            setting = Setting.of(options)
            profiles.append(benchmark_report.profile([sample for sample in samples if sample.setting == setting]))
        return BenchmarkAnswer(
            model=self._engine.model,
            runs=job.body.runs,
            prompt_chars=len(job.body.prompt),
            profiles=profiles,
            recommended=benchmark_choice.recommend(samples, self._config.ollama_keep_alive),
            samples=samples,
        )


def wants_events(req: falcon.Request) -> bool:
    """Whether the client names event streams and does not like JSON better; `*/*` alone is curl's default, for JSON."""
    return SSE_TYPE in req.accept.lower() and req.client_prefers((SSE_TYPE, JSON_TYPE)) == SSE_TYPE


def _frame(event: Happening) -> bytes:
    if isinstance(event, BenchmarkAnswer):
        return sse.event("result", msgspec.to_builtins(event))
    if isinstance(event, Progress):
        return sse.event("progress", msgspec.to_builtins(event))
    return sse.PING


def _last(events: Generator[Happening, None, None]) -> BenchmarkAnswer:
    """The answer to a client that asked for no events."""
    with closing(events):
        for event in events:
            if isinstance(event, BenchmarkAnswer):
                return event
    raise AssertionError("a benchmark ends with its answer or an error")


def _progress(job: Job, run: Run, samples: list[Sample]) -> Progress:
    left = job.runs[len(samples) :]
    warm_ups_left = sum(run.is_warm_up for run in left)
    eta_s = benchmark_report.remaining_s(samples, warm_ups_left + 1, len(left) - warm_ups_left)  # one more to restore
    return Progress(
        "warming_up" if run.is_warm_up else "measuring",
        Setting.of(run.options),
        run.number,
        len(job.runs),
        benchmark_choice.best_so_far(samples),
        None if eta_s is None else math.ceil(eta_s),
    )


def _does_not_fit(error: PromptTooLong, options: LoadOptions) -> PromptTooLong:
    """The engine's refusal, which speaks of the node's own N_CTX, for the setting that was measured."""
    prompt_tokens = error.extra.get("prompt_tokens")
    tokens = f"the {prompt_tokens} tokens of the prompt" if prompt_tokens else "the prompt"
    return PromptTooLong(
        f"context_sizes: {options.num_ctx} cannot hold {tokens} with the system prompt and the chat template; "
        "shorten the prompt, or leave this size out.",
        field="context_sizes",
        given=str(options.num_ctx),
        prompt_tokens=prompt_tokens,
    )


def _too_many_settings(lists: dict[str, list[int]]) -> InvalidValue:
    asked = math.prod(len(values) for values in lists.values())
    field = max(lists, key=lambda field: len(lists[field]))
    sizes = " x ".join(f"{len(values)} {name}" for name, values in lists.items())
    return InvalidValue(
        f"{field}: {sizes} are {asked} settings; expected at most {SETTINGS_LIMIT} in one benchmark.",
        field=field,
        given=f"{asked} settings",
        allowed=f"at most {SETTINGS_LIMIT} settings",
    )
