"""Who is refused at once, and what the refusal says: a full line, a deadline the line cannot meet."""

from __future__ import annotations

from collections import Counter

import pytest
from harness import Node

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 4, "MAX_QUEUE_SIZE": 8, "SSE_PING_S": 60}


def fill_slots(node: Node, engine: FakeHandle) -> None:
    """Four generations that go on until their clients leave."""
    engine.turn(fault="hang_first", faults=4)
    for number in range(4):
        node.generate()
        node.wait_until_busy(running=number + 1)


def test_of_64_at_once_12_are_answered_and_52_refused(node: Node, engine: FakeHandle) -> None:
    engine.turn(prefill_s=1.5)  # so that all have come before the first is done
    exchanges = [node.generate(max_tokens=1) for _ in range(64)]
    assert Counter(exchange.status for exchange in exchanges) == {200: 12, 429: 52}
    for exchange in exchanges:
        if exchange.status == 200:
            assert exchange.next("done").data["completion_tokens"] == 1
            continue
        error = exchange.json()
        assert error["error"] == "queue_full"
        assert int(exchange.headers["retry-after"]) == error["retry_after_s"] >= 1
    seen = engine.seen()
    assert (seen["peak_running"], seen["peak_waiting"], seen["generations"]) == (4, 0, 12)


def test_a_full_line_refuses_answers_that_are_no_streams_too(node: Node, engine: FakeHandle) -> None:
    fill_slots(node, engine)
    for number in range(8):
        node.generate(stream=False)
        node.wait_until_busy(running=4, waiting=number + 1)
    refused = node.generate(stream=False)
    assert (refused.status, refused.json()["error"]) == (429, "queue_full")
    assert node.health()["queue_size"] == 8


def test_a_hopeless_deadline_is_refused_at_once_with_the_estimate(node: Node, engine: FakeHandle) -> None:
    engine.turn(prefill_s=0.5)
    node.answer(max_tokens=1)  # something measured
    fill_slots(node, engine)
    refused = node.generate(headers={"X-Request-Timeout-S": "0.001"})
    error = refused.json()
    assert (refused.status, error["error"]) == (429, "deadline_too_short")
    assert error["eta_s"] > 0
    assert int(refused.headers["retry-after"]) == error["retry_after_s"] >= 1
    assert node.health()["queue_size"] == 0


def test_a_deadline_that_can_be_met_waits(node: Node, engine: FakeHandle) -> None:
    node.answer(max_tokens=1)
    fill_slots(node, engine)
    waiting = node.generate(headers={"X-Request-Timeout-S": "3600"})
    assert waiting.next("queued").data["position"] == 1


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", "7201", ""])
def test_a_deadline_that_is_none_is_named(node: Node, given: str) -> None:
    refused = node.generate(headers={"X-Request-Timeout-S": given})
    assert (refused.status, refused.json()["field"]) == (422, "X-Request-Timeout-S")


@pytest.mark.parametrize("stream", [True, False])
def test_the_deadline_ends_a_generation_that_has_not_begun(node: Node, engine: FakeHandle, stream: bool) -> None:
    engine.turn(fault="hang_first", faults=1)
    exchange = node.generate(stream=stream, headers={"X-Request-Timeout-S": "0.5"})
    assert (exchange.status, exchange.json()["error"]) == (504, "generation_timeout")
    node.wait_until_idle()


def test_the_deadline_ends_a_generation_that_hangs(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang", after=1, faults=1)
    events = list(node.generate(headers={"X-Request-Timeout-S": "0.5"}).events())
    assert [event.name for event in events] == ["token", "error"]
    assert events[-1].data["error"] == "generation_timeout"


def test_the_deadline_ends_a_generation_that_runs(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=20)
    exchange = node.generate(max_tokens=2048, headers={"X-Request-Timeout-S": "0.7"})
    events = list(exchange.events())
    assert events[0].name == "token"
    assert events[-1].data["error"] == "generation_timeout"
    node.wait_until_idle()
    assert engine.seen()["requests"][-1]["ended"] == "client_gone"


@pytest.mark.parametrize("stream", [True, False])
def test_the_deadline_ends_the_wait_for_a_load_that_goes_on(node: Node, engine: FakeHandle, stream: bool) -> None:
    engine.turn(loaded=False, load_s=1.5)
    node.wait_until_unloaded()
    exchange = node.generate(stream=stream, headers={"X-Request-Timeout-S": "0.3"})
    assert (exchange.status, exchange.json()["error"]) == (504, "generation_timeout")
    assert int(exchange.headers["retry-after"]) >= 1
    assert engine.state()["running"] == 1
    node.wait_until_idle()
    assert node.answer(max_tokens=1)[-1].name == "done"
    assert engine.seen()["loads"] == 1
