"""One benchmark, from taking the node to giving it back: what happens, as events. How they look is benchmark.py's."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gevent
import msgspec
from gevent.event import Event

from appliance import benchmark_choice, benchmark_plan, benchmark_report
from appliance.admission import Admission, State, Ticket
from appliance.benchmark_plan import Run
from appliance.benchmark_report import BenchmarkAnswer, Sample, Setting, Told
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
from appliance.eventstream import SILENCE, Silence
from appliance.generation import wait_for_model
from appliance.protocol import LoadOptions, Prompt
from appliance.recordstream import RecordStream
from appliance.residency import Residency

TIME_LIMIT_S = 30 * 60  # so long a node may be taken from its users; 16 settings of a Pi fit
WARM_UP_TOKENS = 8  # enough to touch all weights and buffers; on a Pi a whole answer would cost half a minute a load
RUNS_LIMIT = 1000  # more than a benchmark has
RESTORE_ATTEMPTS = 2
RESTORE_PAUSE_S = 1.0

log = logging.getLogger("appliance")


@dataclass(frozen=True)
class Job:
    """One benchmark: the settings in the order of the answer, and the runs in the order of execution."""

    text: str
    system: str | None
    max_tokens: int
    sampling: dict[str, Any]
    runs_a_setting: int
    settings: list[LoadOptions]
    runs: list[Run]
    seed: int
    streams: int = 1

    def prompts(self, run: Run) -> list[Prompt]:
        """One for each stream of the run; a warm-up has one stream."""
        return [self._prompt(run, stream) for stream in range(1 if run.is_warm_up else self.streams)]

    def _prompt(self, run: Run, stream: int) -> Prompt:
        """A stream's own prompt.

        Its unique words also begin the system prompt, which the engine reads first; where none is given they are one,
        in place of the model's own, whose tokens would come from the prefix cache in every run.
        """
        words = benchmark_plan.unique_words(self.seed, run.number + stream * RUNS_LIMIT)
        return Prompt(
            words + self.text,
            words + (self.system or ""),
            min(self.max_tokens, WARM_UP_TOKENS) if run.is_warm_up else self.max_tokens,
            self.sampling,
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


class Benchmarks:
    """Runs benchmarks over the node's admission, engine and model."""

    def __init__(self, config: Config, admission: Admission, engine: Engine, residency: Residency) -> None:
        self._config = config
        self._admission = admission
        self._engine = engine
        self._residency = residency

    @property
    def own_options(self) -> LoadOptions:
        return self._engine.options

    def answer(self, job: Job, key_id: str, request_id: str, client: Any) -> Generator[Happening, None, None]:
        """The events of one benchmark. All it takes is taken in here, so closing it gives all back.

        1. All slots, when those that run have finished. 2. The model present. 3. The runs. 4. The node's own options
        again, whatever happened: the slots are held until then, and a greenlet that no client can end does it.
        5. The answer.
        Raises: ApplianceError, at any point; ClientGone when the client left.
        """
        arrived, outcome = time.monotonic(), "internal_error"
        restoring = None
        try:
            with ClientWatch(client) as watch:
                ticket = self._admission.enter_exclusive(key_id)
                try:
                    yield from wait_alone(ticket, watch, self._config)
                    load_ends_at = time.monotonic() + TIME_LIMIT_S
                    yield from wait_for_model(self._residency, ticket, watch, self._config.sse_ping_s, load_ends_at)
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

    def _measure(self, job: Job, ticket: Ticket, watch: ClientWatch) -> Generator[Happening, None, list[Sample]]:
        """All runs, one after the other. Raises: as `_run`, with the setting in the error."""
        samples: list[Sample] = []
        memory_mib: float | None = None
        ends_at = time.monotonic() + TIME_LIMIT_S
        for run in job.runs:
            progress = _progress(job, run, samples)
            try:
                told = yield from self._run(job.prompts(run), run, progress, ticket, watch, ends_at)
                if run.is_warm_up:
                    memory_mib = self._memory_mib(run.options)
                samples.append(benchmark_report.sample(run.number, run.options, run.is_warm_up, told, memory_mib))
            except ClientGone:
                raise
            except PromptTooLong as error:
                raise _does_not_fit(error, run.options) from error
            except ApplianceError as error:
                error.extra.setdefault("setting", msgspec.to_builtins(Setting.of(run.options)))
                raise
        return samples

    def _run(
        self, prompts: list[Prompt], run: Run, progress: Progress, ticket: Ticket, watch: ClientWatch, ends_at: float
    ) -> Generator[Happening, None, list[Told]]:
        """One generation for each prompt, all at once, timed.

        Raises: what the engine's stream raises, BenchmarkTimeout, ClientGone, NotReady when the node drains.
        """
        if watch.is_gone:
            raise ClientGone("The client has left its benchmark.")
        if ticket.refusal is not None:
            raise ticket.refusal
        started, streams = time.monotonic(), list[RecordStream]()

        def abort() -> None:
            for stream in streams:
                stream.abort()

        try:
            for prompt in prompts:
                streams.append(self._engine.generate(prompt, run.options))
            watch.call_when_gone(abort)
            ticket.call_when_cut_off(abort)
            yield progress
            others = [gevent.spawn(self._read_beside, stream, started, ends_at) for stream in streams[1:]]
            told = [(yield from self._read(streams[0], started, ends_at))]
            told += yield from self._results(others)
        except EngineFailed:
            if watch.is_gone:
                raise ClientGone("The client has left its benchmark.") from None
            if ticket.refusal is not None:
                raise ticket.refusal from None
            raise
        finally:
            for stream in streams:
                stream.close()
        self._residency.used()
        return told

    def _read_beside(self, stream: RecordStream, started: float, ends_at: float) -> Told | ApplianceError:
        """A stream that runs beside the first, to its end. What it raises is returned: gevent would print it."""
        reading = self._read(stream, started, ends_at)
        try:
            while True:
                next(reading)
        except StopIteration as ended:
            told: Told = ended.value
            return told
        except ApplianceError as error:
            return error

    def _results(
        self, readings: Sequence[gevent.Greenlet[..., Told | ApplianceError]]
    ) -> Generator[Happening, None, list[Told]]:
        """What the streams beside the first showed. Raises: what one of them did."""
        while not all(reading.ready() for reading in readings):
            gevent.joinall(readings, timeout=self._config.sse_ping_s)
            yield SILENCE
        told = []
        for reading in readings:
            result = reading.get()
            if isinstance(result, ApplianceError):
                raise result
            told.append(result)
        return told

    def _read(self, stream: RecordStream, started: float, ends_at: float) -> Generator[Happening, None, Told]:
        """The stream to its end, with a sign of life every SSE_PING_S seconds. Times are told from `started`."""
        first_at, told_at = None, time.monotonic()
        while True:
            records = stream.receive(self._config.sse_ping_s)
            now = time.monotonic()
            if first_at is None and any(record.text for record in records):
                first_at = now
            if stream.is_ended:
                return Told(records[-1], (first_at or now) - started, now - started)
            if now > ends_at:
                raise BenchmarkTimeout(
                    f"The benchmark was not done after {TIME_LIMIT_S // 60} minutes; ask for fewer settings, runs or "
                    "max_tokens."
                )
            if now - told_at >= self._config.sse_ping_s:
                told_at = now
                yield SILENCE

    def _memory_mib(self, options: LoadOptions) -> float | None:
        """What the engine holds for these options; None where it does not say.

        Ollama cuts a context that is larger than the model was trained for, and says so only when asked.
        Raises: InvalidValue when it did; not for the node's own options, which it has anyway.
        """
        loaded = self._engine.own_loaded_models()
        for model in loaded:
            size = model.context_length
            if size is not None and size < options.num_ctx and options != self._engine.options:
                raise InvalidValue(
                    f"context_sizes: got {options.num_ctx}, but the engine loads this model with at most {size}.",
                    field="context_sizes",
                    given=str(options.num_ctx),
                    allowed=f"at most {size}",
                )
        held = max((model.size for model in loaded), default=0)
        return round(held / 2**20, 1) if held else None

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
            runs=job.runs_a_setting,
            prompt_chars=len(job.text),
            profiles=profiles,
            recommended=benchmark_choice.recommend(samples, self._config.ollama_keep_alive),
            samples=samples,
        )


def wait_alone(ticket: Ticket, watch: ClientWatch, config: Config) -> Iterator[Progress | Silence]:
    """Events until nobody else runs. Raises: WaitTimeout, the ticket's refusal, ClientGone."""
    if ticket.state is State.RUNNING:
        return
    watch.call_when_gone(ticket.woken.set)
    yield Progress("waiting")
    limit_s = config.max_queue_wait_s
    while ticket.state is State.WAITING:
        left_s = ticket.entered_at + limit_s - time.monotonic()
        if left_s <= 0:
            raise WaitTimeout(
                f"The running requests did not finish within {limit_s:g} s (MAX_QUEUE_WAIT_S); try again later.",
                retry_after_s=limit_s,
            )
        was_woken = ticket.woken.wait(min(config.sse_ping_s, left_s))
        if watch.is_gone:
            raise ClientGone("The client has left before its benchmark began.")
        if not was_woken:
            yield SILENCE
    if ticket.refusal is not None:
        raise ticket.refusal


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
