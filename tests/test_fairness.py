"""Round robin over keys, first in first out within a key; who is new is not shut out by who has many."""

from __future__ import annotations

import pytest
from harness import Exchange, Node

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 1, "MAX_QUEUE_SIZE": 6}


@pytest.fixture
def blocker(node: Node, engine: FakeHandle) -> Exchange:
    engine.turn(fault="hang_first", faults=1)
    exchange = node.generate(prompt="blocker")
    node.wait_until_busy(running=1)
    return exchange


@pytest.fixture(scope="module")
def keys(running: Node) -> dict[str, str]:
    return {owner: running.make_key(owner) for owner in "abc"}


def queue_up(node: Node, keys: dict[str, str], prompts: str) -> dict[str, Exchange]:
    """Requests that wait in this order; a prompt's first letter is its key."""
    waiting = {}
    for prompt in prompts.split():
        waiting[prompt] = node.generate(prompt=prompt, key=keys[prompt[0]], max_tokens=1)
        node.wait_until_busy(running=1, waiting=len(waiting))
    return waiting


def served(engine: FakeHandle) -> str:
    """The prompts in the order in which the engine got them, without the blocker's."""
    prompts = [request["body"]["messages"][-1]["content"] for request in engine.seen()["requests"]]
    return " ".join(prompt for prompt in prompts if prompt != "blocker")


@pytest.mark.parametrize(
    ("arriving", "expected"),
    [
        ("a1 a2 a3 a4", "a1 a2 a3 a4"),
        ("a1 a2 a3 b1", "a1 b1 a2 a3"),
        ("a1 a2 b1 b2 c1 c2", "a1 b1 c1 a2 b2 c2"),
        ("a1 b1 b2 b3 b4 c1", "a1 b1 c1 b2 b3 b4"),
    ],
)
def test_the_keys_take_turns(
    node: Node, engine: FakeHandle, blocker: Exchange, keys: dict[str, str], arriving: str, expected: str
) -> None:
    waiting = queue_up(node, keys, arriving)
    blocker.leave()
    for exchange in waiting.values():
        assert exchange.next("done")
    assert served(engine) == expected


def test_the_position_counts_the_turns_before(node: Node, blocker: Exchange, keys: dict[str, str]) -> None:
    waiting = queue_up(node, keys, "a1 a2 a3 b1")
    assert waiting["b1"].next("queued").data["position"] == 2


def test_the_first_of_a_key_displaces_the_newest_of_the_greediest(
    node: Node, blocker: Exchange, keys: dict[str, str]
) -> None:
    waiting = queue_up(node, keys, "a1 a2 a3 a4 b1 b2")
    newcomer = node.generate(prompt="c1", key=keys["c"], max_tokens=1)
    error = waiting["a4"].next("error").data
    assert error["error"] == "displaced"
    assert error["retry_after_s"] >= 1
    blocker.leave()
    assert newcomer.next("done")
    assert waiting["a3"].next("done")


def test_a_second_request_of_a_key_displaces_nobody(node: Node, blocker: Exchange, keys: dict[str, str]) -> None:
    queue_up(node, keys, "a1 a2 a3 a4 b1 c1")
    refused = node.generate(prompt="c2", key=keys["c"])
    assert (refused.status, refused.json()["error"]) == (429, "queue_full")
