"""Random clients before an engine of random faults: whatever they did to each other, no slot is lost."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from harness import Exchange, Node, wait_until

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {
    "MAX_CONCURRENT_REQUESTS": 3,
    "MAX_QUEUE_SIZE": 5,
    "MAX_QUEUE_WAIT_S": 2,
    "ENGINE_FIRST_TOKEN_TIMEOUT_S": 1,
    "ENGINE_STALL_TIMEOUT_S": 0.5,
    "SSE_PING_S": 0.1,
}
FAULTS = ("", "", "", "hang_first", "hang", "reset", "close", "no_done", "error", "garbage", "404", "500", "503")
REQUESTS = 120


def turn(engine: FakeHandle, random: Random) -> None:
    engine.turn(
        fault=random.choice(FAULTS),
        after=random.choice((0, 2)),
        tokens_per_s=random.choice((0, 0, 100)),
        prefill_s=random.choice((0, 0, 0.1)),
        split=random.choice(("", "utf8", "line")),
        text=random.choice(("words", "emoji", "long")),
    )


def send(node: Node, keys: list[str], random: Random) -> Exchange:
    headers = {"X-Request-Timeout-S": "0.3"} if random.random() < 0.1 else {}
    fields: dict[str, Any] = {"max_tokens": random.choice((1, 5, 50)), "stream": random.random() < 0.8}
    return node.generate(key=random.choice(keys), headers=headers, **fields)


def part(exchange: Exchange, random: Random) -> None:
    """Read it all, or leave before or after the head."""
    choice = random.random()
    if choice < 0.5:
        assert b"".join(exchange._payload())
        return
    if choice < 0.6:
        assert exchange.status
    (exchange.leave if random.random() < 0.5 else exchange.reset)()


@pytest.mark.parametrize("seed", [1, 2])
def test_no_slot_is_lost(node: Node, engine: FakeHandle, seed: int) -> None:
    random = Random(seed)
    keys = [node.make_key(f"client {number}") for number in range(3)]
    opened: list[Exchange] = []
    for _ in range(REQUESTS):
        turn(engine, random)
        opened.append(send(node, keys, random))
        if len(opened) > 12:
            part(opened.pop(random.randrange(len(opened))), random)
    for exchange in opened:
        part(exchange, random)
    node.wait_until_idle()
    wait_until(lambda: engine.seen()["running"] == 0, "the engine generates for nobody")
    engine.reset()
    node.wait_until_ready()
    answers = [node.generate(max_tokens=1, key=keys[0]) for _ in range(3)]
    assert [answer.next("done").data["completion_tokens"] for answer in answers] == [1, 1, 1]
    assert engine.seen()["peak_running"] <= 3
    assert "Traceback" not in node.log
