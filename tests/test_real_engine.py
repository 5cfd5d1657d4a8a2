"""The service over a real model, the embedded engine's: nothing here is about its words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from embedded_process import EngineProcess, running_engine
from harness import Node, names_of, running_node, text_of

pytestmark = pytest.mark.tier2

pytest.importorskip("xllamacpp", reason="needs the extra `embedded`")

SETTINGS = {"OLLAMA_MODEL": "smollm2:135m", "N_CTX": 256, "MAX_TOKENS": 8, "N_THREADS": 1, "N_BATCH": 32}


@pytest.fixture(scope="module")
def real_engine() -> Iterator[EngineProcess]:
    with running_engine("--parallel", "2") as engine:
        yield engine


@pytest.fixture(scope="module")
def real(real_engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    settings = {**SETTINGS, "OLLAMA_PORT": real_engine.port, "MAX_CONCURRENT_REQUESTS": 2}
    with running_node(tmp_path_factory.mktemp("node"), **settings) as node:
        yield node


def test_it_streams_tokens_and_the_engines_counts(real: Node) -> None:
    events = [event for event in real.answer(max_tokens=6) if event.name != "ping"]
    assert names_of(events)[-1] == "done"
    assert set(names_of(events)[:-1]) == {"token"}
    done = events[-1].data
    assert 0 < done["completion_tokens"] <= 6
    assert done["total_tokens"] == done["prompt_tokens"] + done["completion_tokens"]
    assert done["finish_reason"] in ("stop", "length")


def test_the_same_text_comes_streamed_and_whole(real: Node) -> None:
    asked = {"prompt": "Count: one two three", "temperature": 0, "top_k": 1, "max_tokens": 6}
    assert text_of(real.answer(**asked)) == real.generate(**asked, stream=False).json()["text"]


def test_an_answer_ends_before_a_stop(real: Node) -> None:
    asked = {"prompt": "Count: one two three", "temperature": 0, "top_k": 1, "max_tokens": 8}
    whole = real.generate(**asked, stream=False).json()["text"]
    stop = whole[2:5]
    assert real.generate(**asked, stop=[stop], stream=False).json()["text"] == whole[: whole.index(stop)]


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(real: Node) -> None:
    exchange = real.generate(prompt="lighthouse " * 400)
    error = exchange.json()
    assert (exchange.status, error["error"], error["n_ctx"]) == (422, "prompt_too_long", 256)
    assert error["prompt_tokens"] > 256


def test_who_leaves_frees_the_engine_for_the_next(real: Node) -> None:
    for _ in range(6):
        leaving = real.generate(prompt="Tell me everything.", max_tokens=200)
        leaving.next("token")
        leaving.leave()
    real.wait_until_idle()
    assert real.generate(max_tokens=2).next("done").data["completion_tokens"] <= 2


def test_more_than_the_slots_wait_and_are_answered(real: Node) -> None:
    exchanges = [real.generate(max_tokens=4) for _ in range(5)]
    assert all(exchange.next("done") for exchange in exchanges)
