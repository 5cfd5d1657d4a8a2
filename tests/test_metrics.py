"""GET /metrics: the figures of what happened, for who has a key."""

from __future__ import annotations

import pytest
from harness import Node

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "MAX_QUEUE_SIZE": 4}


def test_it_needs_a_key(node: Node) -> None:
    assert node.get("/metrics").status == 401


def test_it_is_prometheus_text(node: Node) -> None:
    answer = node.get("/metrics", X_API_Key=node.key)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_tokens_are_counted_as_the_engine_counts_them(node: Node) -> None:
    lines = 'appliance_tokens_total{type="input"}', 'appliance_tokens_total{type="output"}'
    before = [node.metric(line) for line in lines]
    node.answer(prompt="x" * 40, max_tokens=5)
    node.generate(prompt="x" * 40, max_tokens=5, stream=False).json()
    assert [node.metric(line) for line in lines] == [before[0] + 36, before[1] + 10]


def test_times_are_observed_once_a_generation(node: Node) -> None:
    names = [f"appliance_{name}_seconds_count" for name in ("queue_wait", "time_to_first_token")]
    before = [node.metric(name) for name in names]
    node.answer(max_tokens=2)
    assert [node.metric(name) for name in names] == [count + 1 for count in before]


def test_slots_and_line_are_those_of_this_moment(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first")
    for _ in range(3):
        node.generate()
    node.wait_until_busy(running=2, waiting=1)
    gauges = [node.metric(f"appliance_{name}") for name in ("requests_running", "requests_waiting", "slots")]
    assert gauges == [2, 1, 2]


def test_the_outcome_of_every_generation_is_counted(node: Node) -> None:
    line = 'appliance_generations_total{outcome="length"}'
    before = node.metric(line)
    node.answer(max_tokens=1)
    assert node.metric(line) == before + 1


def test_no_key_and_no_request_id_is_a_label(node: Node) -> None:
    node.generate(max_tokens=1, headers={"X-Request-ID": "a-telling-id"}).next("done")
    text = node.get("/metrics", X_API_Key=node.key).body
    assert node.key.split("_")[1] not in text
    assert "a-telling-id" not in text
