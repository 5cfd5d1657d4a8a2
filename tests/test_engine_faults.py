"""What the engine does wrong becomes an honest status before the first byte, and an `error` event after it."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Node, names_of, text_of, wait_until

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {
    "MAX_CONCURRENT_REQUESTS": 2,
    "ENGINE_CONNECT_TIMEOUT_S": 1,
    "ENGINE_FIRST_TOKEN_TIMEOUT_S": 1.5,
    "ENGINE_STALL_TIMEOUT_S": 1,
    "SSE_PING_S": 0.3,
}

both_ways = pytest.mark.parametrize("stream", [True, False])
before_the_first_token = pytest.mark.parametrize(
    ("knobs", "status", "code"),
    [
        ({"fault": "404"}, 503, "model_missing"),
        ({"fault": "500"}, 502, "engine_failed"),
        ({"fault": "503"}, 503, "engine_busy"),
        ({"fault": "too_long"}, 422, "prompt_too_long"),
        ({"fault": "reset", "after": 0}, 503, "engine_unreachable"),
        ({"fault": "close", "after": 0}, 503, "engine_unreachable"),
        ({"fault": "no_done", "after": 0}, 502, "engine_failed"),
        ({"fault": "error", "after": 0}, 502, "engine_failed"),
        ({"fault": "garbage", "after": 0}, 502, "engine_failed"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
amid_the_tokens = pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("hang", 504, "engine_stalled"),
        ("reset", 502, "engine_failed"),
        ("close", 502, "engine_failed"),
        ("no_done", 502, "engine_failed"),
        ("error", 502, "engine_failed"),
        ("garbage", 502, "engine_failed"),
    ],
)


@before_the_first_token
@both_ways
def test_before_the_first_token_it_is_a_status(
    node: Node, engine: FakeHandle, knobs: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    engine.turn(**knobs, faults=1)
    exchange = node.generate(stream=stream)
    error = exchange.json()
    assert (exchange.status, error["error"]) == (status, code)
    assert exchange.headers["content-type"] == "application/json"
    assert exchange.headers.get("retry-after", "None") == str(error.get("retry_after_s"))
    assert status != 503 or error["retry_after_s"] >= 1
    assert node.answer(max_tokens=1)[-1].name == "done"


@amid_the_tokens
def test_amid_the_tokens_it_is_an_error_event(
    node: Node, engine: FakeHandle, fault: str, status: int, code: str
) -> None:
    engine.turn(fault=fault, after=3, tokens_per_s=20, faults=1)
    exchange = node.generate(max_tokens=9)
    events = [event for event in exchange.events() if event.name != "ping"]
    assert names_of(events) == ["token"] * 3 + ["error"]
    assert events[-1].data["error"] == code
    assert exchange.is_whole
    assert node.answer(max_tokens=1)[-1].name == "done"


@amid_the_tokens
def test_amid_the_tokens_an_answer_that_is_no_stream_is_a_status(
    node: Node, engine: FakeHandle, fault: str, status: int, code: str
) -> None:
    engine.turn(fault=fault, after=3, tokens_per_s=20, faults=1)
    exchange = node.generate(stream=False)
    assert (exchange.status, exchange.json()["error"]) == (status, code)


def test_the_engines_own_words_are_quoted(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="error", after=1, tokens_per_s=20, error="the runner is on fire")
    assert "the runner is on fire" in node.generate().next("error").data["detail"]


def test_endless_words_of_the_engine_are_cut(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="500", error="x" * 100_000)
    assert len(node.generate().json()["detail"]) < 1000


def test_silence_before_the_first_token_is_an_error_event_after_pings(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    events = list(node.generate().events())
    assert names_of(events[:2]) == ["ping", "ping"]
    assert names_of(events)[-1] == "error"
    assert events[-1].data["error"] == "engine_stalled"


def test_silence_before_the_first_token_is_a_504_where_nothing_is_streamed(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    exchange = node.generate(stream=False)
    assert (exchange.status, exchange.json()["error"]) == (504, "engine_stalled")
    assert "ENGINE_FIRST_TOKEN_TIMEOUT_S" in exchange.json()["detail"]


def test_the_engine_that_stalled_is_told_to_stop(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang", after=1, faults=1)
    node.generate().next("error")
    wait_until(lambda: engine.seen()["requests"][-1]["ended"] == "client_gone", "the engine was told to stop")


def test_a_slow_engine_is_no_fault(node: Node, engine: FakeHandle) -> None:
    engine.turn(prefill_s=1.0, tokens_per_s=2)
    assert names_of(node.answer(max_tokens=2))[-1] == "done"


def test_a_token_of_10000_characters_is_no_fault(node: Node, engine: FakeHandle) -> None:
    engine.turn(text="long", split="line")
    assert text_of(node.answer(max_tokens=2)) == "x" * 20_000


@both_ways
def test_a_refused_connection_is_a_503(node: Node, engine: FakeHandle, stream: bool) -> None:
    engine.go_down()
    wait_until(lambda: not node.get("/health").body["model_loaded"], "the service knows")
    exchange = node.generate(stream=stream)
    assert (exchange.status, exchange.json()["error"]) == (503, "engine_unreachable")
    assert str(engine.port) in exchange.json()["detail"]


def test_an_engine_that_goes_down_amid_the_tokens_is_an_error_event(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=20)
    events = node.generate(max_tokens=2048).events()
    next(events)
    engine.go_down()
    assert [event for event in events if event.name != "token"][-1].data["error"] == "engine_failed"


def test_it_serves_again_when_the_engine_is_back(node: Node, engine: FakeHandle) -> None:
    engine.go_down(for_s=1.0)
    wait_until(lambda: node.generate().status == 503, "the engine refuses")
    wait_until(lambda: node.generate(max_tokens=1).status == 200, "the engine is back")


def test_each_outcome_is_counted(node: Node, engine: FakeHandle) -> None:
    line = 'appliance_generations_total{outcome="engine_busy"}'
    before = node.metric(line)
    engine.turn(fault="503", faults=2)
    node.generate().json()
    node.generate(stream=False).json()
    assert node.metric(line) == before + 2
