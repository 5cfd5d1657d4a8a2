"""What a client hears while it waits: its place in the line, and that the connection lives."""

from __future__ import annotations

import time
from itertools import islice

import pytest
from harness import Event, Exchange, Node, names_of

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 1, "MAX_QUEUE_SIZE": 8, "SSE_PING_S": 0.2}


@pytest.fixture
def blocker(node: Node, engine: FakeHandle) -> Exchange:
    """Holds the only slot until it leaves."""
    engine.turn(fault="hang_first", faults=1)
    exchange = node.generate(prompt="blocker")
    node.wait_until_busy(running=1)
    return exchange


def queue_up(node: Node, requests: int) -> list[Exchange]:
    """So many waiting requests, in this order."""
    waiting = []
    for number in range(requests):
        waiting.append(node.generate(prompt=f"number {number}", max_tokens=1))
        node.wait_until_busy(running=1, waiting=number + 1)
    return waiting


def queued_of(events: list[Event]) -> list[int]:
    return [event.data["position"] for event in events if event.name == "queued"]


def test_each_is_told_its_position(node: Node, blocker: Exchange) -> None:
    waiting = queue_up(node, 3)
    assert [exchange.next("queued").data["position"] for exchange in waiting] == [1, 2, 3]


def test_a_position_that_changes_is_told_again(node: Node, blocker: Exchange) -> None:
    _, leaving, last = queue_up(node, 3)
    events = last.events()
    first = next(events)
    leaving.leave()
    assert first.data["position"] == 3
    assert next(event for event in events if event.name == "queued").data["position"] == 2


def test_the_answer_follows_the_wait(node: Node, blocker: Exchange) -> None:
    (waiting,) = queue_up(node, 1)
    events = waiting.events()
    first = next(events)
    blocker.leave()
    rest = [event for event in events if event.name != "ping"]
    assert names_of([first, *rest]) == ["queued", "token", "done"]
    assert rest[-1].data["queue_ms"] > 0


def test_the_estimate_is_null_or_whole_seconds(node: Node, blocker: Exchange) -> None:
    eta_s = queue_up(node, 1)[0].next("queued").data["eta_s"]
    assert eta_s is None or (isinstance(eta_s, int) and eta_s >= 0)


def test_after_a_measured_answer_there_is_an_estimate(node: Node, engine: FakeHandle) -> None:
    node.answer(max_tokens=1)
    engine.turn(fault="hang_first", faults=1)
    node.generate()
    node.wait_until_busy(running=1)
    assert isinstance(queue_up(node, 1)[0].next("queued").data["eta_s"], int)


def test_positions_are_told_at_most_once_a_second(node: Node, blocker: Exchange) -> None:
    *others, last = queue_up(node, 6)
    began, events = time.monotonic(), last.events()
    told = [next(events)]
    for leaving in others:
        leaving.leave()
        told += list(islice(events, 2))  # pings, or positions
    assert len(queued_of(told)) <= 1 + (time.monotonic() - began) / 1.0


def test_the_last_position_is_told_in_the_end(node: Node, blocker: Exchange) -> None:
    *others, last = queue_up(node, 4)
    events = last.events()
    next(events)
    for leaving in others:
        leaving.leave()
    assert next(event for event in events if event.name == "queued" and event.data["position"] == 1)


def test_it_pings_while_it_waits(node: Node, blocker: Exchange) -> None:
    (waiting,) = queue_up(node, 1)
    assert names_of(list(islice(waiting.events(), 4)))[1:] == ["ping"] * 3


def test_it_pings_in_a_silent_prefill(node: Node, engine: FakeHandle) -> None:
    engine.turn(prefill_s=1.0)
    names = names_of(node.answer(max_tokens=1))
    assert names[:2] == ["ping", "ping"]
    assert names[-2:] == ["token", "done"]


def test_it_pings_in_the_silence_between_tokens(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=1.5)
    names = names_of(node.answer(max_tokens=2))
    assert names[0] == "token"
    assert names[1:3] == ["ping", "ping"]
    assert names[-2:] == ["token", "done"]


def test_tokens_that_flow_need_no_pings(node: Node, engine: FakeHandle) -> None:
    engine.turn(split="line")  # half lines are no silence
    assert names_of(node.answer(max_tokens=8)) == ["token"] * 8 + ["done"]


def test_it_pings_while_the_model_loads(node: Node, engine: FakeHandle) -> None:
    engine.turn(loaded=False, load_s=1.0)
    node.wait_until_unloaded()
    names = names_of(node.answer(max_tokens=1))
    assert names[:2] == ["ping", "ping"]
    assert names[-2:] == ["token", "done"]
    assert engine.seen()["loads"] == 1
