"""What POST /benchmark answers, streams, and asks of the engine."""

from __future__ import annotations

import re
from typing import Any

import pytest
from benchmark_client import benchmark
from harness import Node, names_of, post

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"N_CTX": 512, "N_THREADS": 3, "N_BATCH": 64, "MAX_TOKENS": 96, "OLLAMA_KEEP_ALIVE": "10m"}
OWN = {"num_ctx": 512, "num_thread": 3, "num_batch": 64}
CONTRACT_PROFILE = {
    "context_size",
    "runs",
    "avg_latency_ms",
    "avg_ttft_ms",
    "avg_completion_tokens",
    "avg_completion_tokens_per_second",
}


def asked(engine: FakeHandle) -> list[dict[str, Any]]:
    """The bodies of the runs that the engine saw, without those that load the model."""
    bodies = [request["body"] for request in engine.seen()["requests"]]
    return [body for body in bodies if body["options"]["num_predict"] > 1]


def load_options(body: dict[str, Any]) -> dict[str, int]:
    return {name: body["options"][name] for name in OWN}


def test_it_answers_the_contract_and_more(node: Node) -> None:
    answer = benchmark(node, context_sizes=[512, 1024], runs=2).json()
    assert (answer["model"], answer["runs"], answer["prompt_chars"]) == ("qwen2.5:3b", 2, 19)
    assert [profile["context_size"] for profile in answer["profiles"]] == [512, 1024]
    assert all(profile.keys() >= CONTRACT_PROFILE for profile in answer["profiles"])
    recommended = answer["recommended"]
    assert recommended["env"].keys() == {"N_CTX", "MAX_TOKENS", "N_THREADS", "N_BATCH", "OLLAMA_KEEP_ALIVE"}
    assert recommended["env"]["OLLAMA_KEEP_ALIVE"] == "10m"
    assert recommended["request_defaults"] == {"max_tokens": recommended["env"]["MAX_TOKENS"], "stream": True}
    assert f"N_CTX={recommended['env']['N_CTX']}" in recommended["reason"]


def test_each_profile_has_the_options_used_and_the_spread_of_its_runs(node: Node) -> None:
    answer = benchmark(node, threads=[1, 2], batch_sizes=[8], runs=3).json()
    first, second = answer["profiles"]
    assert (first["threads"], second["threads"], second["batch_size"]) == (1, 2, 8)
    for quantity in ("completion", "prefill", "decode"):
        of = second[f"{quantity}_tokens_per_second"]
        assert of["n"] == 3
        assert of["min"] <= of["median"] <= of["max"]
        assert of["stdev"] >= 0
    assert second["ttft_ms"]["p50"] <= second["ttft_ms"]["p95"]


def test_the_first_run_after_a_load_is_reported_as_warm_up_and_left_out(node: Node, engine: FakeHandle) -> None:
    engine.turn(load_s=0.3)
    answer = benchmark(node, context_sizes=[512, 1024], runs=2).json()
    assert [(sample["context_size"], sample["warm_up"]) for sample in answer["samples"]] == [
        (512, True),
        (512, False),
        (1024, True),
        (1024, False),
        (1024, False),
        (512, True),
        (512, False),
    ]
    assert answer["samples"][2]["load_ms"] >= 300
    assert answer["profiles"][1]["load_ms"] >= 300
    assert [profile["runs"] for profile in answer["profiles"]] == [2, 2]


def test_streams_run_at_once_and_count_together(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=100)
    answer = benchmark(node, streams=2, runs=1).json()
    warm_up, measured = answer["samples"]
    assert (warm_up["streams"], measured["streams"], measured["completion_tokens"]) == (1, 2, 16)
    first, second = engine.seen(3)["requests"][:2]
    assert second["first_token_ns"] < first["ended_ns"]
    assert first["body"]["messages"][-1]["content"] != second["body"]["messages"][-1]["content"]
    assert measured["memory_mib"] > 1000


def test_more_streams_than_slots_are_as_many_as_slots(node: Node) -> None:
    answer = benchmark(node, streams=64, runs=1).json()
    assert answer["samples"][-1]["streams"] == node.health()["max_concurrent"]


def test_the_counts_are_the_engines(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens=5, tokens_per_s=100)
    samples = benchmark(node, runs=1).json()["samples"]
    assert [sample["completion_tokens"] for sample in samples] == [5, 5]
    assert [sample["finish_reason"] for sample in samples] == ["stop", "stop"]
    assert samples[1]["cached_tokens"] is None
    assert samples[1]["decode_tokens_per_second"] <= 100


def test_ttft_is_measured_on_the_stream(node: Node, engine: FakeHandle) -> None:
    engine.turn(prefill_s=0.2, tokens_per_s=50)
    sample = benchmark(node, runs=1, max_tokens=6).json()["samples"][1]
    assert sample["ttft_ms"] >= 200
    assert sample["latency_ms"] >= 200 + 5 * 20 - 1  # the engine's schedule; a late reader only adds to it
    assert sample["latency_ms"] > sample["ttft_ms"]


def test_it_measures_the_nodes_own_settings_where_none_are_given(node: Node, engine: FakeHandle) -> None:
    answer = benchmark(node).json()
    assert all(load_options(body) == OWN for body in asked(engine))
    assert len(answer["profiles"]) == 1
    assert len(asked(engine)) == 1 + 2


def test_the_requests_fields_reach_the_engine(node: Node, engine: FakeHandle) -> None:
    benchmark(node, runs=1, max_tokens=40, temperature=1.5, top_p=0.5, top_k=7, system="Be brief.").json()
    warm_up, run = asked(engine)
    assert run["options"] == {**OWN, "num_predict": 40, "temperature": 1.5, "top_p": 0.5, "top_k": 7}
    assert warm_up["options"]["num_predict"] == 8
    assert [message["role"] for message in run["messages"]] == ["system", "user"]
    assert run["messages"][0]["content"].endswith(": Be brief.")
    assert run["messages"][1]["content"].endswith(": Why do apples fall?")


def test_the_defaults_are_those_of_the_contract(node: Node, engine: FakeHandle) -> None:
    benchmark(node, runs=1, max_tokens=160).json()
    assert asked(engine)[-1]["options"] == {**OWN, "num_predict": 160, "temperature": 0.2, "top_p": 0.9, "top_k": 40}


def test_every_run_begins_with_its_own_words_in_this_benchmark_and_the_next(node: Node, engine: FakeHandle) -> None:
    for _ in range(2):
        benchmark(node, context_sizes=[512, 1024], runs=2).json()
    for message in (0, 1):  # the system prompt, which the engine reads first, and the prompt
        beginnings = [body["messages"][message]["content"][:14] for body in asked(engine)]
        assert all(re.fullmatch(r"Run \d{8}: ", words) for words in beginnings)
        assert len(set(beginnings)) == 14


def test_events_tell_of_each_run_and_end_with_the_result(node: Node) -> None:
    exchange = benchmark(node, events=True, context_sizes=[1024, 512], runs=1)
    events = [event for event in exchange.events() if event.name != "ping"]
    assert exchange.headers["content-type"].startswith("text/event-stream")
    assert exchange.headers["cache-control"] == "no-cache, no-transform"
    assert names_of(events) == ["progress"] * 5 + ["result"]
    assert [(e.data["stage"], e.data["setting"]["context_size"], e.data["run"]) for e in events[:-1]] == [
        ("warming_up", 512, 1),  # the node's own setting first: it is loaded
        ("measuring", 512, 2),
        ("warming_up", 1024, 3),
        ("measuring", 1024, 4),
        ("restoring", 512, 0),
    ]
    assert [profile["context_size"] for profile in events[-1].data["profiles"]] == [1024, 512]


def test_progress_has_the_best_so_far_and_the_time_left(node: Node) -> None:
    events = list(benchmark(node, events=True, context_sizes=[512, 1024], runs=1).events())
    progress = [event.data for event in events if event.name == "progress"]
    assert [data["best"] is None for data in progress[:4]] == [True, True, False, False]
    assert [data["eta_s"] is None for data in progress[:4]] == [True, True, False, False]
    assert progress[2]["best"].keys() == {"context_size", "threads", "batch_size", "decode_tokens_per_second"}
    assert all(data["runs"] == 4 for data in progress[:4])


@pytest.mark.parametrize("knobs", [{"prefill_s": 0.7}, {"tokens_per_s": 10}, {"load_s": 0.7}])
def test_it_pings_while_it_has_nothing_to_say(node: Node, engine: FakeHandle, knobs: dict[str, float]) -> None:
    engine.turn(**knobs)
    names = names_of(list(benchmark(node, events=True, runs=1, context_sizes=[512, 1024], max_tokens=6).events()))
    third_run = names.index("progress", names.index("progress", names.index("progress") + 1) + 1)
    assert names[third_run + 1] == "ping"  # the run that loads the other setting
    assert names[-1] == "result"


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/event-stream;q=0.5"])
def test_who_does_not_prefer_events_gets_json(node: Node, accept: str) -> None:
    exchange = benchmark(node, accept=accept, runs=1)
    assert exchange.headers["content-type"].startswith("application/json")
    assert exchange.json()["runs"] == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 8193}, "prompt"),
        ({"system": "x" * 4097}, "system"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2049}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"runs": 0}, "runs"),
        ({"runs": 6}, "runs"),
        ({"context_sizes": []}, "context_sizes"),
        ({"context_sizes": [127]}, "context_sizes"),
        ({"context_sizes": [131073]}, "context_sizes"),
        ({"context_sizes": [512, 512]}, "context_sizes"),
        ({"context_sizes": [512, 600, 700, 800, 900]}, "context_sizes"),
        ({"threads": [257]}, "threads"),
        ({"threads": [4, 2, 4]}, "threads"),
        ({"batch_sizes": [7]}, "batch_sizes"),
        ({"batch_sizes": "128"}, "batch_sizes"),
        ({"threads": [1, 2, 3, 4], "batch_sizes": [8, 16, 32], "context_sizes": [512, 1024]}, "threads"),
        ({"stop": ["x"]}, "stop"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(
    node: Node, engine: FakeHandle, fields: dict[str, Any], named: str
) -> None:
    exchange = benchmark(node, events=True, **fields)
    assert exchange.status == 422
    assert exchange.json()["field"] == named
    assert asked(engine) == []


def test_too_many_settings_are_refused_with_their_number(node: Node) -> None:
    error = benchmark(node, threads=[1, 2, 3, 4], batch_sizes=[8, 16, 32], context_sizes=[512, 1024]).json()
    assert "2 context_sizes x 4 threads x 3 batch_sizes are 24 settings; expected at most 16" in error["detail"]


def test_a_prompt_that_a_context_cannot_hold_is_refused_by_that_size(node: Node) -> None:
    exchange = benchmark(node, prompt="x" * 4000, context_sizes=[2048, 256])
    error = exchange.json()
    assert (exchange.status, error["error"], error["field"], error["given"]) == (
        422,
        "prompt_too_long",
        "context_sizes",
        "256",
    )
    assert error["prompt_tokens"] > 1000


def test_it_needs_a_key(node: Node) -> None:

    exchange = node.open(post("/benchmark", {"Content-Type": "application/json"}, b'{"prompt": "x"}'))
    assert exchange.status == 401


def test_after_the_answer_the_nodes_own_options_are_loaded(node: Node, engine: FakeHandle) -> None:
    benchmark(node, context_sizes=[1024], runs=1).json()
    assert node.ready().status == 200
    seen = engine.seen()
    assert load_options(seen["requests"][-1]["body"]) == OWN
    node.answer(max_tokens=2)
    assert engine.seen()["loads"] == seen["loads"], "the next request reloads nothing"
