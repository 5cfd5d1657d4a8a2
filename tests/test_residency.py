"""The model's way into memory and its state there, over an engine with knobs and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from appliance.engine import Engine
from appliance.errors import EngineFailed, EngineUnreachable, NotReady
from appliance.protocol import LoadedModel, LoadOptions, Prompt
from appliance.residency import CHECK_EVERY_S, Residency

MODEL = "qwen2.5:3b"
KEEP_ALIVE_S = 1800.0


class Stream:
    is_ended = False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def receive(self, timeout_s: float) -> list[Any]:
        gevent.sleep(0)
        self.is_ended = True
        return []


class FakeEngine(Engine):
    """Holds and loads without a network. `asked` counts the questions, `loads` and `pulls` what was done."""

    def __init__(self, trained_context: int = 32768) -> None:
        super().__init__(11434, MODEL, LoadOptions(512, 4, 128), "30m")
        self.trained_context = trained_context
        self.is_up, self.is_present, self.is_loaded, self.fails = True, True, False, False
        self.asked = self.loads = self.pulls = 0

    def loaded_models(self) -> list[LoadedModel]:
        self.asked += 1
        gevent.sleep(0)
        if not self.is_up:
            raise EngineUnreachable("gone")
        size = min(self.options.num_ctx, self.trained_context)
        return [LoadedModel(MODEL, MODEL, context_length=size)] if self.is_loaded else []

    def has_model(self) -> bool:
        return self.is_present

    def pull(self) -> Iterator[tuple[str, float | None]]:
        self.pulls += 1
        yield "pulling 5ee4f07cdb9b", 0.41
        self.is_present = True

    def generate(self, prompt: Prompt, options: LoadOptions | None = None) -> Any:
        self.loads += 1
        if self.fails:
            raise EngineFailed("out of memory")
        self.is_loaded = True
        return Stream()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ready(engine: FakeEngine, clock: Clock, **settings: Any) -> Residency:
    residency = Residency(engine, KEEP_ALIVE_S, clock=clock, **settings)
    residency.start().join(timeout=5)
    assert residency.is_ready
    return residency


def test_before_its_start_it_refuses_with_the_stage(clock: Clock) -> None:
    residency = Residency(FakeEngine(), KEEP_ALIVE_S, clock=clock)
    with pytest.raises(NotReady, match="starting"):
        residency.ensure_loaded()


def test_a_warm_model_needs_no_load(clock: Clock) -> None:
    engine = FakeEngine()
    residency = ready(engine, clock)
    assert residency.ensure_loaded() is None
    assert residency.reason_not_ready() is None
    assert engine.loads == 1


def test_callers_at_the_same_moment_share_one_question(clock: Clock) -> None:
    engine = FakeEngine()
    residency = ready(engine, clock)
    clock.now += CHECK_EVERY_S
    before = engine.asked
    callers = [gevent.spawn(residency.state) for _ in range(20)]
    gevent.joinall(callers)
    assert engine.asked == before + 1
    assert all(caller.value == callers[0].value for caller in callers)


def test_a_model_lost_before_its_time_is_loaded_again_and_told(clock: Clock) -> None:
    engine = FakeEngine()
    residency = ready(engine, clock)
    engine.is_loaded = False
    clock.now += CHECK_EVERY_S
    assert residency.reason_not_ready() == "loading the model"
    load = residency.ensure_loaded()
    assert load is not None
    load.join()
    assert residency.reason_not_ready() is None
    assert engine.loads == 2


def test_a_model_unloaded_after_its_idle_time_is_ready_and_loads_with_the_next_request(clock: Clock) -> None:
    engine = FakeEngine()
    residency = ready(engine, clock)
    engine.is_loaded = False
    clock.now += KEEP_ALIVE_S
    assert residency.reason_not_ready() is None
    assert engine.loads == 1
    load = residency.ensure_loaded()
    assert load is not None
    load.join()
    assert engine.loads == 2


def test_a_load_that_fails_is_told_and_not_tried_again_at_once(clock: Clock) -> None:
    engine = FakeEngine()
    residency = ready(engine, clock)
    engine.is_loaded, engine.fails = False, True
    clock.now += CHECK_EVERY_S
    load = residency.ensure_loaded()
    assert load is not None
    load.join()
    assert isinstance(load.value, EngineFailed)
    with pytest.raises(EngineFailed, match="out of memory"):
        residency.ensure_loaded()
    assert residency.reason_not_ready() == "out of memory"
    assert engine.loads == 2
    clock.now += 60
    engine.fails = False
    again = residency.ensure_loaded()
    assert again is not None
    again.join()
    assert residency.reason_not_ready() is None


def test_a_model_deleted_from_the_engine_is_pulled_again(clock: Clock) -> None:
    engine = FakeEngine()
    residency = ready(engine, clock)
    engine.is_loaded = engine.is_present = False
    clock.now += CHECK_EVERY_S
    load = residency.ensure_loaded()
    assert load is not None
    load.join()
    assert load.value is None
    assert engine.pulls == 1
    assert residency.stage == "ready"


def test_a_context_that_the_engine_cuts_is_accepted_and_logged_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine(trained_context=256)
    residency = ready(engine, clock)
    clock.now += CHECK_EVERY_S
    assert residency.ensure_loaded() is None
    assert residency.reason_not_ready() is None
    assert [record.args for record in caplog.records if "more than" in record.message] == [(512, MODEL, 256)]


def test_an_engine_that_is_away_is_told_in_its_own_words(clock: Clock) -> None:
    engine = FakeEngine()
    residency = ready(engine, clock)
    engine.is_up = False
    clock.now += CHECK_EVERY_S
    assert residency.reason_not_ready() == "gone"
    assert residency.ensure_loaded() is None
