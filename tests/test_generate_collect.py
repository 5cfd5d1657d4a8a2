"""`stream: false`: the whole answer as one JSON object, after whatever waiting it took."""

from __future__ import annotations

import pytest
from harness import Node, wait_until

from bench.fake.answer import CJK
from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 1, "MAX_QUEUE_SIZE": 4}


def test_it_answers_with_the_text_and_the_engines_counts(node: Node) -> None:
    answer = node.generate(prompt="x" * 40, max_tokens=3, stream=False).json()
    assert answer["text"] == " the apple falls"
    counts = {name: answer[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert counts == {"prompt_tokens": 18, "completion_tokens": 3, "total_tokens": 21}
    assert answer["finish_reason"] == "length"


def test_characters_cut_between_chunks_arrive_whole(node: Node, engine: FakeHandle) -> None:
    engine.turn(text="cjk", split="utf8")
    assert node.generate(max_tokens=len(CJK), stream=False).json()["text"] == "".join(CJK)


def test_a_slow_answer_is_not_begun_before_it_is_whole(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=10)  # silent for longer than SSE_PING_S, which is for streams alone
    exchange = node.generate(max_tokens=5, stream=False)
    assert exchange.headers["content-type"] == "application/json"
    assert exchange.json()["completion_tokens"] == 5


def test_it_waits_in_line_like_everybody(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    blocker = node.generate()
    node.wait_until_busy(running=1)
    waiting = node.generate(max_tokens=2, stream=False)
    node.wait_until_busy(running=1, waiting=1)
    blocker.leave()
    assert waiting.json()["text"] == " the apple"


def test_a_prompt_that_does_not_fit_is_refused(node: Node) -> None:
    exchange = node.generate(prompt="word " * 1000, stream=False)
    assert (exchange.status, exchange.json()["error"]) == (422, "prompt_too_long")


def test_it_holds_its_slot_until_the_engine_is_done(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=10)
    exchange = node.generate(max_tokens=5, stream=False)
    wait_until(lambda: engine.seen()["running"] == 1, "the engine generates")
    assert node.health()["active_requests"] == 1
    assert exchange.status == 200
    node.wait_until_idle()
