"""What a streamed answer looks like on the wire, and what the engine was asked for it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from harness import Node, names_of, text_of

from bench.fake.answer import CJK, EMOJI, WORDS
from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"N_CTX": 256, "N_THREADS": 3, "N_BATCH": 32, "MAX_TOKENS": 7, "OLLAMA_KEEP_ALIVE": "10m"}
LOAD_OPTIONS = {"num_ctx": 256, "num_thread": 3, "num_batch": 32}
TIMES = ("queue_ms", "ttft_ms", "tokens_per_second", "load_ms", "prefill_ms", "decode_ms")


def last_body(engine: FakeHandle) -> dict[str, Any]:
    body: dict[str, Any] = engine.seen()["requests"][-1]["body"]
    return body


def test_it_streams_tokens_and_ends_with_done(node: Node) -> None:
    events = node.answer(max_tokens=3)
    assert names_of(events) == ["token", "token", "token", "done"]
    assert [event.data for event in events[:3]] == [{"token": text, "done": False} for text in WORDS[:3]]


def test_done_carries_the_engines_counts_and_the_times(node: Node) -> None:
    done = node.generate(prompt="x" * 40, max_tokens=5).next("done").data
    times = {name: done.pop(name) for name in TIMES}
    assert done == {
        "done": True,
        "prompt_tokens": 18,  # as the fake counts: 8 for the template, one every 4 characters
        "completion_tokens": 5,
        "total_tokens": 23,
        "finish_reason": "length",
        "cached_tokens": None,  # the fake says nothing of its cache
    }
    assert all(isinstance(value, float) and value >= 0 for value in times.values()), times


def test_it_says_stop_where_the_model_ended_by_itself(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens=2)
    assert node.generate(max_tokens=9).next("done").data["finish_reason"] == "stop"


def test_the_bytes_are_those_of_the_contract(node: Node) -> None:
    raw = b"".join(node.generate(max_tokens=1)._payload()).decode()
    token = 'event: token\ndata: {"token": " the", "done": false}\n\n'
    assert re.fullmatch(re.escape(token) + r'event: done\ndata: \{"done": true, [^\n]*\}\n\n', raw)


def test_the_headers_keep_proxies_from_buffering(node: Node) -> None:
    exchange = node.generate(max_tokens=1)
    assert exchange.headers["content-type"].startswith("text/event-stream")
    assert exchange.headers["cache-control"] == "no-cache, no-transform"
    assert exchange.headers["x-accel-buffering"] == "no"


def test_a_sane_request_id_comes_back(node: Node) -> None:
    exchange = node.generate(max_tokens=1, headers={"X-Request-ID": "job-7:a.b_c"})
    assert exchange.headers["x-request-id"] == "job-7:a.b_c"


@pytest.mark.parametrize("given", ["two words", "x" * 129, "<script>", "é"])
def test_another_request_id_is_replaced(node: Node, given: str) -> None:
    exchange = node.generate(max_tokens=1, headers={"X-Request-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", exchange.headers["x-request-id"])


def test_a_refusal_has_a_request_id_too(node: Node) -> None:
    assert node.generate(key="pk_wrong").headers["x-request-id"]


@pytest.mark.parametrize("split", ["", "utf8", "line"])
@pytest.mark.parametrize(("text", "texts"), [("emoji", EMOJI), ("cjk", CJK)])
def test_characters_arrive_whole(node: Node, engine: FakeHandle, text: str, texts: tuple[str, ...], split: str) -> None:
    engine.turn(text=text, split=split)
    events = node.answer(max_tokens=len(texts))
    assert [event.data["token"] for event in events[:-1]] == list(texts)


def test_a_token_of_10000_characters_arrives_whole(node: Node, engine: FakeHandle) -> None:
    engine.turn(text="long")
    assert text_of(node.answer(max_tokens=3)) == "x" * 30_000


def test_the_prompt_of_many_scripts_reaches_the_engine_as_it_was_sent(node: Node, engine: FakeHandle) -> None:
    prompt = 'Ünïcödé 👩‍🚀 重力 "quoted" \\ back\nline \u2028 sep'
    node.answer(prompt=prompt, max_tokens=1)
    assert last_body(engine)["messages"] == [{"role": "user", "content": prompt}]


def test_system_becomes_the_system_prompt(node: Node, engine: FakeHandle) -> None:
    node.answer(prompt="Who?", system="Be brief.", max_tokens=1)
    assert last_body(engine)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
    ]


def test_the_sampling_reaches_the_engine(node: Node, engine: FakeHandle) -> None:
    node.answer(max_tokens=2, temperature=0.1, top_p=0.5, top_k=7, stop=["\n", "END"])
    assert last_body(engine)["options"] == {
        **LOAD_OPTIONS,
        "num_predict": 2,
        "temperature": 0.1,
        "top_p": 0.5,
        "top_k": 7,
        "stop": ["\n", "END"],
    }


def test_the_defaults_are_those_of_the_contract(node: Node, engine: FakeHandle) -> None:
    node.answer()
    body = last_body(engine)
    assert body["options"] == {**LOAD_OPTIONS, "num_predict": 7, "temperature": 0.7, "top_p": 0.9, "top_k": 40}
    assert (body["truncate"], body["shift"], body["keep_alive"]) == (False, False, "10m")


def test_the_model_is_loaded_once_for_all_requests(node: Node, engine: FakeHandle) -> None:
    engine.turn(loaded=False)
    for fields in ({"max_tokens": 1}, {"max_tokens": 9, "temperature": 0}, {"system": "Be brief."}):
        node.answer(**fields)
    seen = engine.seen()
    load_options = [{name: request["body"]["options"][name] for name in LOAD_OPTIONS} for request in seen["requests"]]
    assert load_options == [LOAD_OPTIONS] * len(load_options)
    assert seen["loads"] == 1


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(node: Node) -> None:
    exchange = node.generate(prompt="word " * 400)
    assert exchange.status == 422
    error = exchange.json()
    assert (error["error"], error["field"], error["n_ctx"]) == ("prompt_too_long", "prompt", 256)
    assert error["prompt_tokens"] == 508
    assert "508" in error["detail"]
    assert "256" in error["detail"]


def test_the_key_may_come_as_a_bearer_token(node: Node) -> None:
    exchange = node.generate(max_tokens=1, headers={"X-API-Key": "", "Authorization": f"Bearer {node.key}"})
    assert exchange.status == 200


def test_without_a_key_it_answers_401_and_asks_the_engine_nothing(node: Node, engine: FakeHandle) -> None:
    before = engine.seen()["generations"]
    exchange = node.generate(headers={"X-API-Key": ""})
    assert (exchange.status, exchange.json()["error"]) == (401, "unauthenticated")
    assert exchange.headers["www-authenticate"].startswith("Bearer")
    assert exchange.headers["content-type"].startswith("application/json")
    assert engine.seen()["generations"] == before


def test_one_connection_serves_several_answers(node: Node) -> None:
    exchange = node.generate(max_tokens=1)
    list(exchange.events())
    exchange.send(b"GET /live HTTP/1.1\r\nHost: node\r\n\r\n")
    assert exchange.following().json() == {"status": "alive"}
