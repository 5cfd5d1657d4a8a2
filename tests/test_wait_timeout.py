"""Waiting for a slot ends at MAX_QUEUE_WAIT_S, or at the request's own deadline if that comes first."""

from __future__ import annotations

import pytest
from harness import Exchange, Node, names_of

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 1, "MAX_QUEUE_SIZE": 4, "MAX_QUEUE_WAIT_S": 1}


@pytest.fixture
def blocker(node: Node, engine: FakeHandle) -> Exchange:
    engine.turn(fault="hang_first", faults=1)
    exchange = node.generate()
    node.wait_until_busy(running=1)
    return exchange


def test_a_stream_ends_with_an_error_event(node: Node, blocker: Exchange) -> None:
    events = list(node.generate().events())
    assert events[0].name == "queued"
    assert names_of(events)[-1] == "error"
    assert events[-1].data["error"] == "wait_timeout"
    assert events[-1].data["retry_after_s"] >= 1
    assert node.health()["queue_size"] == 0


def test_an_answer_that_is_no_stream_becomes_a_504(node: Node, blocker: Exchange) -> None:
    exchange = node.generate(stream=False)
    assert (exchange.status, exchange.json()["error"]) == (504, "wait_timeout")
    assert int(exchange.headers["retry-after"]) >= 1


def test_the_requests_own_deadline_may_be_sooner(node: Node, blocker: Exchange) -> None:
    exchange = node.generate(headers={"X-Request-Timeout-S": "0.5"}, stream=False)
    error = exchange.json()
    assert (exchange.status, error["error"]) == (504, "wait_timeout")
    assert "0.5 s" in error["detail"]


def test_the_place_is_free_again(node: Node, blocker: Exchange) -> None:
    list(node.generate().events())
    follower = node.generate(max_tokens=1)
    follower.next("queued")
    blocker.leave()
    assert follower.next("done")
