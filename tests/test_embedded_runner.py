"""The embedded engine's slots, line, loads and unloads: who runs, who waits, who is refused, what is freed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_clock import FakeClock

from appliance.embedded.errors import ClientGone, EngineError
from appliance.embedded.gguf import Model
from appliance.embedded.options import LoadOptions
from appliance.embedded.peer import Peer
from appliance.embedded.runner import Runner, Wanted

MODEL = Model("m:latest", Path("m.gguf"), {})
PATIENCE_S = 10  # only ever used up by a failing test


def wanted(num_ctx: int = 512) -> Wanted:
    return Wanted(MODEL, LoadOptions(num_ctx=num_ctx, num_batch=64, num_thread=1))


class FakeEngine:
    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


class Loads:
    """A loader with knobs: it can fail, and it can be held in the middle of a load."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.fails = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.begun = threading.Semaphore(0)

    def __call__(self, wanted: Wanted) -> FakeEngine:
        self.begun.release()
        assert self.may_go_on.wait(PATIENCE_S)
        if self.fails:
            raise EngineError(500, "llama runner failed to load model")
        self.engines.append(FakeEngine(wanted))
        return self.engines[-1]


class Client(threading.Thread):
    """A request in its own thread: waits for a slot, and holds it until told to finish."""

    def __init__(self, runner: Runner[FakeEngine], wanted: Wanted, keep_alive_s: float | None = None) -> None:
        super().__init__(daemon=True)
        self.ours, self._theirs = socket.socketpair()
        self._runner, self._wanted, self._keep_alive_s = runner, wanted, keep_alive_s
        self.has_slot, self.may_finish = threading.Event(), threading.Event()
        self.problem: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._runner.slot(self._wanted, self._keep_alive_s, Peer(self._theirs)) as slot:
                assert slot.backend.is_open
                self.has_slot.set()
                assert self.may_finish.wait(PATIENCE_S)
        except (EngineError, ClientGone) as problem:
            self.problem = problem

    def finish(self) -> None:
        self.may_finish.set()
        self.join(PATIENCE_S)
        assert not self.is_alive()

    def leave(self) -> None:
        self.ours.close()
        self.finish()

    def close(self) -> None:
        self.finish()
        self.ours.close()
        self._theirs.close()


Start = Callable[..., Client]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def runner(loads: Loads, clock: FakeClock) -> Runner[FakeEngine]:
    return Runner(loads, parallel=2, keep_alive_s=300, max_queue=2, clock=clock)


@pytest.fixture
def start(runner: Runner[FakeEngine]) -> Iterator[Start]:
    clients: list[Client] = []
    with ExitStack() as stack:

        def begin(num_ctx: int = 512, keep_alive_s: float | None = None, waits: bool = False) -> Client:
            client = Client(runner, wanted(num_ctx), keep_alive_s)
            stack.callback(client.close)
            clients.append(client)
            assert waits or client.has_slot.wait(PATIENCE_S)
            return client

        yield begin
        for client in clients:
            client.may_finish.set()


def eventually(fact: Callable[[], bool]) -> None:
    """Return when the fact holds, which another thread brings about."""
    pause = threading.Event()
    for _ in range(PATIENCE_S * 1000):
        if fact():
            return
        pause.wait(0.001)
    pytest.fail("it never came about")


def in_line(runner: Runner[FakeEngine], count: int) -> None:
    eventually(lambda: runner.waiting == count)


def test_as_many_run_as_there_are_slots_and_the_next_one_waits(runner: Runner[FakeEngine], start: Start) -> None:
    first, _ = start(), start()
    third = start(waits=True)
    in_line(runner, 1)
    first.finish()
    assert third.has_slot.wait(PATIENCE_S)


def test_one_load_serves_all_who_want_the_same(loads: Loads, start: Start) -> None:
    start()
    start()
    assert len(loads.engines) == 1


def test_other_load_options_wait_for_those_who_run_and_then_reload(
    runner: Runner[FakeEngine], loads: Loads, start: Start
) -> None:
    first = start(num_ctx=512)
    other = start(num_ctx=640, waits=True)
    in_line(runner, 1)
    assert len(loads.engines) == 1
    first.finish()
    assert other.has_slot.wait(PATIENCE_S)
    assert [engine.is_open for engine in loads.engines] == [False, True]


def test_nobody_passes_one_who_waits_for_a_reload(runner: Runner[FakeEngine], start: Start) -> None:
    first = start(num_ctx=512)
    other = start(num_ctx=640, waits=True)
    in_line(runner, 1)
    late = start(num_ctx=512, waits=True)
    in_line(runner, 2)
    first.finish()
    assert other.has_slot.wait(PATIENCE_S)
    assert not late.has_slot.is_set()


def test_one_who_leaves_the_line_lets_the_others_go_on(runner: Runner[FakeEngine], start: Start) -> None:
    first, second = start(), start()
    leaver = start(waits=True)
    in_line(runner, 1)
    last = start(waits=True)
    in_line(runner, 2)
    leaver.leave()
    assert isinstance(leaver.problem, ClientGone)
    first.finish()
    assert last.has_slot.wait(PATIENCE_S)
    assert second.is_alive()


def test_one_who_waits_for_a_reload_and_leaves_frees_those_behind(
    runner: Runner[FakeEngine], loads: Loads, start: Start
) -> None:
    start(num_ctx=512)
    other = start(num_ctx=640, waits=True)
    in_line(runner, 1)
    late = start(num_ctx=512, waits=True)
    in_line(runner, 2)
    other.leave()
    assert late.has_slot.wait(PATIENCE_S)
    assert len(loads.engines) == 1


def test_a_load_that_fails_is_told_and_the_next_request_tries_again(
    runner: Runner[FakeEngine], loads: Loads, start: Start
) -> None:
    loads.fails = True
    unlucky = start(waits=True)
    unlucky.join(PATIENCE_S)
    assert isinstance(unlucky.problem, EngineError)
    assert unlucky.problem.status == 500
    loads.fails = False
    start()
    assert runner.loaded() is not None


def test_too_many_who_need_a_load_are_refused_with_ollamas_503(
    runner: Runner[FakeEngine], loads: Loads, start: Start
) -> None:
    loads.may_go_on.clear()
    start(waits=True)
    loads.begun.acquire()
    waiting = [start(waits=True) for _ in range(2)]
    in_line(runner, 2)
    refused = start(waits=True)
    refused.join(PATIENCE_S)
    assert isinstance(refused.problem, EngineError)
    assert refused.problem.status == 503
    assert refused.problem.message == "server busy, please try again.  maximum pending requests exceeded"
    loads.may_go_on.set()
    assert waiting[0].has_slot.wait(PATIENCE_S)


def test_those_who_need_no_load_may_wait_in_any_number(runner: Runner[FakeEngine], start: Start) -> None:
    start(), start()
    clients = [start(waits=True) for _ in range(20)]
    in_line(runner, 20)
    assert all(client.problem is None for client in clients)
    for client in clients:
        client.leave()


def test_an_idle_model_is_unloaded_when_its_time_is_over(
    runner: Runner[FakeEngine], loads: Loads, start: Start, clock: FakeClock
) -> None:
    start(keep_alive_s=60).finish()
    clock.advance(59)
    runner.unload_expired()
    assert runner.loaded() == (wanted(), pytest.approx(1))
    clock.advance(2)
    runner.unload_expired()
    assert runner.loaded() is None
    assert not loads.engines[0].is_open


def test_a_request_without_keep_alive_leaves_the_last_ones(
    runner: Runner[FakeEngine], start: Start, clock: FakeClock
) -> None:
    start(keep_alive_s=60).finish()
    start().finish()
    assert runner.loaded() == (wanted(), 60)


def test_keep_alive_zero_unloads_at_the_end_of_the_request(
    runner: Runner[FakeEngine], loads: Loads, start: Start
) -> None:
    start(keep_alive_s=0).finish()
    assert runner.loaded() is None
    assert not loads.engines[0].is_open


def test_unload_waits_for_the_request_that_runs(runner: Runner[FakeEngine], loads: Loads, start: Start) -> None:
    running = start()
    runner.unload(MODEL)
    assert loads.engines[0].is_open
    running.finish()
    assert not loads.engines[0].is_open


def test_a_running_request_is_never_unloaded_however_long_it_takes(
    runner: Runner[FakeEngine], loads: Loads, start: Start, clock: FakeClock
) -> None:
    start(keep_alive_s=1)
    clock.advance(1000)
    runner.unload_expired()
    assert loads.engines[0].is_open


def test_keep_starts_the_time_anew_and_needs_no_slot(
    runner: Runner[FakeEngine], start: Start, clock: FakeClock
) -> None:
    start().finish()
    clock.advance(200)
    assert runner.keep(wanted(), 600)
    assert runner.loaded() == (wanted(), 600)
    assert not runner.keep(wanted(num_ctx=640), 600)


def test_the_background_thread_unloads_by_itself(loads: Loads) -> None:
    runner = Runner(loads, parallel=1, keep_alive_s=0.01)
    threading.Thread(target=runner.unload_expired_for_ever, daemon=True).start()
    client = Client(runner, wanted())
    assert client.has_slot.wait(PATIENCE_S)
    client.close()
    eventually(lambda: runner.loaded() is None)
    assert not loads.engines[0].is_open
