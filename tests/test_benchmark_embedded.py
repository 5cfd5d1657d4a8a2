"""The benchmark over a real model: the embedded engine loads, generates and counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmark_client import benchmark
from embedded_process import running_engine
from harness import Node, names_of, running_node

pytestmark = pytest.mark.tier2


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    pytest.importorskip("xllamacpp", reason="needs the extra `embedded`")
    settings = {"OLLAMA_MODEL": "smollm2:135m", "N_CTX": 256, "MAX_TOKENS": 16, "N_THREADS": 1, "N_BATCH": 32}
    folder = tmp_path_factory.mktemp("node")
    with running_engine() as engine, running_node(folder, OLLAMA_PORT=engine.port, **settings) as node:
        yield node


def test_it_measures_a_real_model_and_recommends_a_setting_that_it_measured(node: Node) -> None:
    answer = benchmark(node, context_sizes=[256, 512], runs=2, max_tokens=12).json()
    assert answer["model"] == "smollm2:135m"
    assert [profile["runs"] for profile in answer["profiles"]] == [2, 2]
    for sample in answer["samples"]:
        assert 0 < sample["completion_tokens"] <= 12
        assert 0 < sample["ttft_ms"] <= sample["latency_ms"]
        assert sample["prefill_tokens_per_second"] > 0
    env = answer["recommended"]["env"]
    assert env["N_CTX"] in (256, 512)
    assert (env["N_THREADS"], env["N_BATCH"]) == (1, 32)
    assert 16 <= env["MAX_TOKENS"] <= env["N_CTX"] // 2


def test_the_prefix_cache_flatters_no_run(node: Node) -> None:
    text = "The history of the lighthouse is long. " * 10
    samples = benchmark(node, prompt=text, runs=3, max_tokens=2, context_sizes=[512]).json()["samples"]
    assert len({sample["prompt_tokens"] for sample in samples}) == 1
    assert all((sample["cached_tokens"] or 0) < 0.1 * sample["prompt_tokens"] for sample in samples)


def test_afterwards_the_node_serves_with_its_own_options(node: Node) -> None:
    benchmark(node, context_sizes=[512], batch_sizes=[64], runs=1, max_tokens=4).json()
    assert node.ready().status == 200
    assert node.health()["model_loaded"]
    assert names_of(node.answer(max_tokens=2))[-1] == "done"


def test_a_context_larger_than_the_model_has_is_refused_and_not_recommended(node: Node) -> None:
    exchange = benchmark(node, context_sizes=[131072], runs=1, max_tokens=2)
    error = exchange.json()
    assert (exchange.status, error["field"], error["given"]) == (422, "context_sizes", "131072")
    assert "the engine loads this model with at most" in error["detail"]
    node.wait_until_ready()


def test_a_prompt_that_does_not_fit_one_of_the_contexts_is_refused_by_that_context(node: Node) -> None:
    exchange = benchmark(node, prompt="lighthouse " * 300, context_sizes=[2048, 256], runs=1, max_tokens=2)
    error = exchange.json()
    assert (exchange.status, error["error"], error["given"]) == (422, "prompt_too_long", "256")
    assert error["prompt_tokens"] > 256
    node.wait_until_ready()
