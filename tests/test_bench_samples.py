"""What one request shows: each time by its formula, each rate by the engine's own count."""

from __future__ import annotations

import pytest
from bench_runs import failed, made

from bench.running.samples import Failure


def test_times_count_from_the_planned_sending() -> None:
    sample = made(10.0, ttft_s=2.0, tpot_s=0.5, tokens=5, sent_s=11.0, ended_s=14.25)
    assert (sample.ttft_s, sample.e2e_s) == (2.0, 4.25)


def test_tpot_is_the_time_between_first_and_last_token_by_one_less_than_their_number() -> None:
    assert made(tpot_s=0.5, tokens=5).tpot_s == pytest.approx(0.5)
    assert made(tpot_s=0.5, tokens=5, counts={"completion_tokens": 9}).tpot_s == pytest.approx(0.25)


def test_an_answer_of_one_token_has_no_tpot_and_no_decode_speed() -> None:
    assert made(tokens=1).tpot_s is None
    assert made(tokens=1, counts={"decode_ms": 3.0}).decode_tokens_per_s is None


def test_the_prompt_cache_does_not_inflate_prefill() -> None:
    """Ollama counts cached tokens in the prompt's, and not their time: 802 tokens "in" 26 ms are one token."""
    counts = {"prompt_tokens": 802, "prefill_ms": 26.0}
    assert made(counts={**counts, "cached_tokens": 801}).prefill_tokens_per_s == pytest.approx(38.46, abs=0.01)
    assert made(counts={**counts, "cached_tokens": 802}).prefill_tokens_per_s is None


def test_decode_speed_is_by_the_engines_clock_where_it_has_one() -> None:
    assert made(tpot_s=0.5, tokens=5, counts={"decode_ms": 1000.0}).decode_tokens_per_s == 4.0
    assert made(tpot_s=0.5, tokens=5).decode_tokens_per_s == pytest.approx(2.0)


def test_a_failed_request_has_no_latency() -> None:
    assert (failed().ttft_s, failed().e2e_s, failed().tpot_s, failed().queue_s) == (None, None, None, None)


@pytest.mark.parametrize(
    ("failure", "name"),
    [
        (Failure("status", "queue_full", 429), "429 queue_full"),
        (Failure("status", "", 502), "502"),
        (Failure("event", "engine_stalled"), "event engine_stalled"),
        (Failure("cut_off"), "cut_off"),
    ],
)
def test_a_failure_is_counted_under_its_kind(failure: Failure, name: str) -> None:
    assert str(failure) == name
