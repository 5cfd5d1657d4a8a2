"""When requests are sent, and from when their latency counts; in a time that only the test moves on."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import gevent
import pytest
from gevent.event import Event

from bench.running.client import BenchError, Target, WrongKey
from bench.running.load import GONE_AFTER, Loading, NodeGone, TraceRefused, keep_up
from bench.running.samples import ClosedLoop, Counts, Failure, Load, OpenLoop, Stage
from bench.running.stream import Reply
from bench.running.trace import Calibration, Prompt, Trace

COUNTS = Counts(prompt_tokens=30, completion_tokens=2, finish_reason="length")


class SimulatedTime:
    """A clock that goes on to the next sleeper's time when nobody has anything to do."""

    def __init__(self) -> None:
        self._now, self._sleepers, self._order = 100.0, list[tuple[float, int, Event]](), count()

    def now(self) -> float:
        return self._now

    def sleep_until(self, at: float) -> None:
        woken = Event()
        heappush(self._sleepers, (at, next(self._order), woken))
        woken.wait()

    def run(self, job: Callable[[], None]) -> None:
        """To the job's end. Raises: what it raises."""
        errors: list[BenchError] = []

        def guarded() -> None:
            try:
                job()
            except BenchError as error:
                errors.append(error)

        greenlet = gevent.spawn(guarded)
        while not greenlet.ready():
            for _ in range(10):
                gevent.sleep(0)
            if not greenlet.ready() and self._sleepers:
                at, _, woken = heappop(self._sleepers)
                self._now = max(self._now, at)
                woken.set()
        greenlet.get()
        if errors:
            raise errors[0]


class SimulatedNode:
    """Serves one request after another, each for `service_s`; the `stalled`th takes longer."""

    def __init__(self, time: SimulatedTime, service_s: float = 1.0, stall: tuple[int, float] = (-1, 0.0)) -> None:
        self.time, self.service_s, self.stall = time, service_s, stall
        self.free_at, self.asked, self.at_once, self.most_at_once = 0.0, 0, 0, 0
        self.failure: Callable[[int], Failure | None] = lambda number: None

    def __call__(self, prompt: Prompt) -> Reply:
        number, sent_at = self.asked, self.time.now()
        self.asked += 1
        if failure := self.failure(number):
            return Reply(sent_at, sent_at, failure=failure)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        service_s = self.stall[1] if number == self.stall[0] else self.service_s
        self.free_at = max(self.free_at, sent_at) + service_s
        self.time.sleep_until(self.free_at)
        self.at_once -= 1
        now = self.time.now()
        return Reply(sent_at, now, [now - 0.1, now], counts=COUNTS)


def measured(load: Load, node: SimulatedNode, warm_up: int = 0, requests: int = 6, **more: float) -> Stage:
    stage = Stage(0, load, 0.0, samples=[])
    time = node.time
    loading = Loading(node, Trace(1, (32,), Calibration()), time, time.now(), warm_up, requests, **more)
    time.run(lambda: keep_up(loading, stage))
    return stage


def test_a_closed_loop_keeps_so_many_busy_and_no_more() -> None:
    node = SimulatedNode(SimulatedTime())
    stage = measured(ClosedLoop(3), node, requests=9)
    assert (node.most_at_once, node.asked, len(stage.measured)) == (3, 9, 9)


def test_an_open_loop_sends_at_its_times_however_slow_the_node_is() -> None:
    stage = measured(OpenLoop(2.0), SimulatedNode(SimulatedTime(), service_s=10.0))
    assert sorted(sample.sent_s for sample in stage.samples) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_a_stall_is_in_the_latency_of_everyone_who_came_meanwhile() -> None:
    """Coordinated omission: a client that waited for the stalled answer would have seen one slow request of ten."""
    stage = measured(OpenLoop(1.0), SimulatedNode(SimulatedTime(), service_s=0.1, stall=(2, 5.0)), requests=10)
    assert sum(1 for sample in stage.samples if (sample.e2e_s or 0.0) > 1.0) == 5
    assert max(sample.e2e_s or 0.0 for sample in stage.samples) == pytest.approx(5.0)


def test_latency_counts_from_the_planned_time_when_bench_itself_is_late() -> None:
    time = SimulatedTime()
    node = SimulatedNode(time)

    def late(prompt: Prompt) -> Reply:
        time.sleep_until(time.now() + 3.0)
        return node(prompt)

    stage = Stage(0, OpenLoop(0.1), 0.0, samples=[])
    loading = Loading(late, Trace(1, (32,), Calibration()), time, time.now(), 0, 2)
    time.run(lambda: keep_up(loading, stage))
    assert [sample.sent_s - sample.planned_s for sample in stage.samples] == [3.0, 3.0]
    assert [sample.e2e_s for sample in stage.samples] == [4.0, 4.0]


def test_warm_ups_come_first_and_are_known_as_such() -> None:
    stage = measured(ClosedLoop(1), SimulatedNode(SimulatedTime()), warm_up=2, requests=3)
    assert [sample.part for sample in stage.samples] == ["warm_up"] * 2 + ["measured"] * 3


def test_a_stage_remembers_until_when_its_load_was_full() -> None:
    stage = measured(ClosedLoop(2), SimulatedNode(SimulatedTime()), requests=4)
    assert stage.full_until_s == 3.0  # one of the two found no more to ask while the other's last was served


def test_a_stage_ends_with_its_time() -> None:
    stage = measured(ClosedLoop(1), SimulatedNode(SimulatedTime()), requests=100, duration_s=4.5)
    assert len(stage.samples) == 5


def test_a_refused_client_waits_as_long_as_the_node_says() -> None:
    node = SimulatedNode(SimulatedTime())
    node.failure = lambda number: Failure("status", "queue_full", 429, retry_after_s=7.0) if number == 0 else None
    stage = measured(ClosedLoop(1), node, requests=2)
    assert [sample.sent_s for sample in stage.samples] == [0.0, 7.0]
    assert str(stage.samples[0].failure) == "429 queue_full"


def test_an_open_loop_does_not_slow_down_for_refusals() -> None:
    node = SimulatedNode(SimulatedTime())
    node.failure = lambda number: Failure("status", "queue_full", 429, retry_after_s=7.0)
    stage = measured(OpenLoop(1.0), node, requests=4)
    assert [sample.sent_s for sample in stage.samples] == [0.0, 1.0, 2.0, 3.0]


def test_a_node_that_gives_no_answers_counts_as_gone_and_what_was_measured_stays() -> None:
    node = SimulatedNode(SimulatedTime())
    node.failure = lambda number: Failure("refused", detail="The connection was refused.") if number >= 3 else None
    stage = Stage(0, ClosedLoop(1), 0.0, samples=[])
    loading = Loading(node, Trace(1, (32,), Calibration()), node.time, node.time.now(), 0, 100)
    with pytest.raises(NodeGone, match="5 requests in a row got no answer, the last: refused"):
        node.time.run(lambda: keep_up(loading, stage))
    assert len(stage.samples) == 3 + GONE_AFTER


def test_one_answer_between_shows_that_the_node_is_there() -> None:
    node = SimulatedNode(SimulatedTime())
    node.failure = lambda number: Failure("cut_off") if number % GONE_AFTER else None
    assert len(measured(ClosedLoop(1), node, requests=20).samples) == 20


def test_refusals_by_the_node_itself_never_count_as_gone() -> None:
    node = SimulatedNode(SimulatedTime())
    node.failure = lambda number: Failure("event", "engine_failed")
    assert len(measured(ClosedLoop(1), node, requests=20).samples) == 20


def test_a_prompt_that_does_not_fit_ends_it_at_once() -> None:
    node = SimulatedNode(SimulatedTime())
    node.failure = lambda number: Failure("status", "prompt_too_long", 422, "prompt: 600 tokens, but N_CTX is 512.")
    with pytest.raises(TraceRefused, match="N_CTX is 512"):
        measured(ClosedLoop(2), node)
    assert node.asked <= 2


def test_a_wrong_key_ends_it_at_once_and_cuts_the_others_off() -> None:
    time = SimulatedTime()
    slow, asked = SimulatedNode(time, service_s=1e6), []

    def ask(prompt: Prompt) -> Reply:
        asked.append(prompt)
        if len(asked) == 2:
            raise WrongKey(Target("pi1", "http://pi1:8000", "a key"))
        return slow(prompt)

    loading = Loading(ask, Trace(1, (32,), Calibration()), time, time.now(), 0, 100)
    with pytest.raises(WrongKey):
        time.run(lambda: keep_up(loading, Stage(0, ClosedLoop(4), 0.0, samples=[])))
    assert time.now() < 1e6
