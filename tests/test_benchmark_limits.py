"""What bounds a benchmark, and what it does with slots and engine: the resource over collaborators with knobs."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import gevent
import pytest

from appliance import benchmark_run
from appliance.admission import Admission
from appliance.benchmark import Benchmark, BenchmarkRequest
from appliance.benchmark_report import BenchmarkAnswer
from appliance.benchmark_run import Benchmarks, Progress
from appliance.config import Config
from appliance.errors import (
    ApplianceError,
    BenchmarkTimeout,
    EngineFailed,
    EngineUnreachable,
    InvalidValue,
    NotReady,
)
from appliance.eventstream import Silence
from appliance.protocol import LoadedModel, LoadOptions, Message, Prompt, Record

OWN = LoadOptions(512, 4, 128)
LAST = Record(done=True, eval_count=3, eval_duration=1_000_000_000, prompt_eval_count=9, prompt_eval_duration=10**9)


class FakeStream:
    """Records at once, after as many silent waits as asked for."""

    def __init__(self, silences: int) -> None:
        self.is_ended = False
        self.is_closed = False
        self.is_aborted = False
        self._silences = silences

    def receive(self, timeout_s: float) -> list[Record]:
        if self.is_aborted:
            raise EngineFailed("aborted")
        if self._silences:
            self._silences -= 1
            return []
        self.is_ended = True
        return [Record(message=Message(" word")), LAST]

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> int:
        self.is_closed = True
        return 0


class FakeEngine:
    """silences: of each stream. context_limit: the largest context that the model is loaded with."""

    model = "fake:1b"
    options = OWN

    def __init__(self, silences: int = 0, context_limit: int = 10**6) -> None:
        self.silences = silences
        self.context_limit = context_limit
        self.asked: list[tuple[Prompt, LoadOptions]] = []
        self.streams: list[FakeStream] = []

    def generate(self, prompt: Prompt, options: LoadOptions) -> FakeStream:
        self.asked.append((prompt, options))
        self.streams.append(FakeStream(self.silences))
        return self.streams[-1]

    def own_loaded_models(self) -> list[LoadedModel]:
        size = min(self.asked[-1][1].num_ctx, self.context_limit)
        return [LoadedModel(name=self.model, model=self.model, context_length=size)]


class FakeResidency:
    """Says what was done to it, in order; `failures` are raised by the first loads."""

    def __init__(self, admission: Admission, *failures: ApplianceError, is_ready: bool = True) -> None:
        self.done: list[str] = []
        self._admission = admission
        self._failures = list(failures)
        self._is_ready = is_ready

    def ensure_loaded(self) -> None:
        if not self._is_ready:
            raise NotReady("This node is not ready: pulling model 41 %.", retry_after_s=5)

    def load(self) -> None:
        self.done.append(f"load while {'held' if self._admission.running else 'free'}")
        if self._failures:
            raise self._failures.pop(0)

    def forget(self) -> None:
        self.done.append("forget")

    def used(self) -> None:
        pass


class Bench:
    """A benchmark with its collaborators; `events` are its, to be read or closed."""

    def __init__(self, engine: FakeEngine, *failures: ApplianceError, is_ready: bool = True, **fields: Any) -> None:
        self.admission = Admission(slots=2, queue_limit=2)
        self.residency = FakeResidency(self.admission, *failures, is_ready=is_ready)
        config = Config(sse_ping_s=0.0, max_tokens=16)
        collaborators: Any = (config, self.admission, engine, self.residency)
        benchmarks = Benchmarks(*collaborators)
        job = Benchmark(config, benchmarks)._job(BenchmarkRequest(prompt="Why?", **fields))
        self.events = benchmarks.answer(job, "key", "request", None)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.events.close()
        self.wait_until_free()
        assert not self.admission.running, "a slot leaked"

    def wait_until_free(self) -> None:
        with gevent.Timeout(5):
            while self.admission.is_benchmarking:
                gevent.sleep(0)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_run, "RESTORE_PAUSE_S", 0)


def test_all_runs_are_asked_for_then_the_own_options_are_loaded_with_the_slots_still_held() -> None:
    engine = FakeEngine()
    with Bench(engine, context_sizes=[256, 512], runs=1) as bench:
        answer = list(bench.events)[-1]
    assert isinstance(answer, BenchmarkAnswer)
    assert [options.num_ctx for _, options in engine.asked] == [512, 512, 256, 256]
    assert all(stream.is_closed for stream in engine.streams)
    assert bench.residency.done == ["load while held"]


def test_it_ends_with_an_error_when_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_run, "TIME_LIMIT_S", 0)
    engine = FakeEngine(silences=1)
    with Bench(engine) as bench, pytest.raises(BenchmarkTimeout, match="ask for fewer settings, runs or max_tokens"):
        list(bench.events)
    assert len(engine.streams) == 1
    assert engine.streams[0].is_closed
    assert bench.residency.done == ["load while held"]


def test_closing_it_between_two_events_ends_the_run_and_loads_the_own_options() -> None:
    engine = FakeEngine()
    with Bench(engine, context_sizes=[1024]) as bench:
        assert isinstance(next(bench.events), Progress)
    assert engine.streams[0].is_closed
    assert bench.residency.done == ["load while held"]


def test_a_reload_that_fails_once_is_tried_again() -> None:
    with Bench(FakeEngine(), EngineFailed("out of memory"), runs=1) as bench:
        assert isinstance(list(bench.events)[-1], BenchmarkAnswer)
    assert bench.residency.done == ["load while held", "forget", "load while held"]


def test_a_reload_that_keeps_failing_gives_the_slots_back_and_the_answer_too() -> None:
    with Bench(FakeEngine(), EngineFailed("out of memory"), EngineUnreachable("gone"), runs=1) as bench:
        assert isinstance(list(bench.events)[-1], BenchmarkAnswer)
    assert bench.residency.done == ["load while held", "forget", "load while held", "forget"]
    assert bench.admission.enter("key").position == 0


def test_a_context_that_the_engine_cuts_is_refused_after_the_warm_up() -> None:
    engine = FakeEngine(context_limit=32768)
    with Bench(engine, context_sizes=[512, 65536]) as bench, pytest.raises(InvalidValue) as caught:
        list(bench.events)
    assert caught.value.extra["field"] == "context_sizes"
    assert caught.value.extra["allowed"] == "at most 32768"
    assert engine.asked[-1][1].num_ctx == 65536


def test_while_the_node_starts_it_is_refused_and_nothing_is_loaded() -> None:
    with Bench(FakeEngine(), is_ready=False) as bench, pytest.raises(NotReady):
        list(bench.events)
    assert bench.residency.done == []


def test_draining_between_two_runs_ends_it() -> None:
    engine = FakeEngine(silences=1)
    with Bench(engine, runs=5) as bench:
        next(event for event in bench.events if isinstance(event, Silence))
        bench.admission.drain()
        with pytest.raises(NotReady, match="draining"):
            list(bench.events)
    assert engine.streams[0].is_aborted
    assert len(engine.streams) == 1


def test_a_drained_node_refuses_it() -> None:
    with Bench(FakeEngine()) as bench:
        bench.admission.drain()
        with pytest.raises(NotReady, match="draining"):
            list(bench.events)


def test_warm_ups_are_short_whatever_the_runs_are() -> None:
    engine = FakeEngine()
    with Bench(engine, max_tokens=500, runs=1) as bench:
        list(bench.events)
    assert [prompt.max_tokens for prompt, _ in engine.asked] == [8, 500]
