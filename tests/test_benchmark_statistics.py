"""What the figures of one run, and of one setting's runs, are made of."""

from __future__ import annotations

from statistics import NormalDist

import msgspec
import pytest
from benchmark_samples import made
from hypothesis import given
from hypothesis import strategies as st

from appliance.benchmark_choice import best_so_far, p_value
from appliance.benchmark_report import Told, percentile, profile, remaining_s, sample, spread
from appliance.protocol import LoadOptions, Record

OPTIONS = LoadOptions(1024, 3, 64)
LAST = Record(
    done=True,
    done_reason="length",
    load_duration=25_000_000,
    prompt_eval_count=120,
    prompt_eval_duration=2_000_000_000,
    eval_count=41,
    eval_duration=8_000_000_000,
)


def test_decode_speed_is_the_tokens_after_the_first_by_the_time_from_the_first_to_the_last() -> None:
    assert sample(2, OPTIONS, False, [Told(LAST, 2.25, 10.5)]).decode_tokens_per_second == 5.0


def test_streams_at_once_decode_together_from_the_first_token_of_any_to_the_end_of_the_last() -> None:
    run = sample(2, OPTIONS, False, [Told(LAST, 2.0, 10.0), Told(LAST, 4.0, 12.0)], 2048.0)
    assert (run.streams, run.completion_tokens, run.latency_ms, run.ttft_ms) == (2, 82, 12000, 3000)
    assert run.decode_tokens_per_second == 8.0
    assert run.tpot_ms == 200.0
    assert run.memory_mib == 2048.0


def test_prefill_speed_leaves_cached_tokens_out_where_the_engine_reports_them() -> None:
    assert sample(2, OPTIONS, False, [Told(LAST, 2.25, 10.5)]).prefill_tokens_per_second == 60.0
    cached = msgspec.structs.replace(LAST, prompt_eval_cached_count=100)
    assert sample(2, OPTIONS, False, [Told(cached, 2.25, 10.5)]).prefill_tokens_per_second == 10.0


def test_latency_and_ttft_are_the_streams_and_completion_speed_is_over_the_whole_latency() -> None:
    run = sample(2, OPTIONS, False, [Told(LAST, 2.25, 8.2)])
    assert (run.latency_ms, run.ttft_ms, run.load_ms) == (8200.0, 2250.0, 25.0)
    assert run.completion_tokens_per_second == 5.0
    assert (run.context_size, run.threads, run.batch_size) == (1024, 3, 64)


@pytest.mark.parametrize("tokens", [0, 1])
def test_an_answer_of_less_than_two_tokens_has_no_decode_speed(tokens: int) -> None:
    last = Record(done=True, eval_count=tokens, eval_duration=1000, prompt_eval_count=3)
    run = sample(2, OPTIONS, False, [Told(last, 1.0, 1.0)])
    assert run.decode_tokens_per_second is None
    assert run.prefill_tokens_per_second is None


def test_a_slow_node_is_not_rounded_away() -> None:
    last = Record(done=True, eval_count=11, eval_duration=29_500_000_000)
    assert sample(2, OPTIONS, False, [Told(last, 10.0, 40.0)]).decode_tokens_per_second == 0.338983


def test_warm_ups_give_the_load_time_and_nothing_else() -> None:
    warm = {"warm_up": True, "latency_ms": 9e9, "ttft_ms": 9e9, "decode_tokens_per_second": 9e9}
    of = profile([made(load_ms=800.0, **warm), made(ttft_ms=100.0), made(load_ms=600.0, **warm), made(ttft_ms=300.0)])
    assert of.runs == 2
    assert of.load_ms == 800.0
    assert of.avg_ttft_ms == 200.0
    assert of.decode_tokens_per_second is not None
    assert of.decode_tokens_per_second.max == 5.5


def test_a_profile_has_the_means_of_the_first_contract() -> None:
    one = made(latency_ms=1000.0, ttft_ms=100.0, completion_tokens=10, completion_tokens_per_second=10.0)
    two = made(latency_ms=3000.0, ttft_ms=200.0, completion_tokens=15, completion_tokens_per_second=5.0)
    of = profile([made(warm_up=True), one, two])
    assert (of.avg_latency_ms, of.avg_ttft_ms) == (2000.0, 150.0)
    assert (of.avg_completion_tokens, of.avg_completion_tokens_per_second) == (12.5, 7.5)
    assert (of.ttft_ms.p50, of.ttft_ms.p95) == (150.0, 195.0)


def test_a_spread_has_the_samples_deviation_and_none_of_a_single_value() -> None:
    several = spread([2.0, 4.0, 9.0])
    single = spread([2.0, None])
    assert several is not None
    assert (several.n, several.median, several.min, several.max, several.stdev) == (3, 4.0, 2.0, 9.0, 3.60555)
    assert single is not None
    assert (single.n, single.stdev) == (1, None)
    assert spread([None]) is None


@pytest.mark.parametrize(("share", "expected"), [(0, 1), (0.5, 3), (0.95, 4.8), (1, 5)])
def test_percentiles_lie_linearly_between_neighbours(share: float, expected: float) -> None:
    assert percentile([5, 3, 1, 2, 4], share) == pytest.approx(expected)


# Two-sided critical values as every table of Student's t has them.
@pytest.mark.parametrize(
    ("degrees", "t", "p"),
    [
        (1, 12.706, 0.05),
        (2, 4.303, 0.05),
        (2, 9.925, 0.01),
        (3, 3.182, 0.05),
        (4, 2.776, 0.05),
        (5, 4.032, 0.01),
        (10, 2.228, 0.05),
        (30, 2.042, 0.05),
        (64, 1.998, 0.05),
    ],
)
def test_p_values_are_those_of_the_tables(degrees: int, t: float, p: float) -> None:
    assert p_value(t, degrees) == pytest.approx(p, rel=0.002)


def test_with_many_degrees_students_t_is_normal() -> None:
    assert p_value(1.5, 2000) == pytest.approx(2 * (1 - NormalDist().cdf(1.5)), abs=5e-4)


@given(t=st.floats(0, 1e6), more=st.floats(0, 10), degrees=st.integers(1, 80))
def test_a_larger_t_is_never_more_likely(t: float, more: float, degrees: int) -> None:
    assert 0 <= p_value(t + more, degrees) <= p_value(t, degrees) + 1e-12 <= 1 + 1e-9


def test_what_remains_is_estimated_when_a_warm_up_and_a_run_are_known() -> None:
    warm, measured = made(warm_up=True, latency_ms=4000.0), made(latency_ms=2000.0)
    assert remaining_s([warm], 2, 5) is None
    assert remaining_s([warm, measured], 2, 5) == 18.0


def test_the_best_so_far_counts_no_warm_up() -> None:
    fast = made(context_size=1024, decode_tokens_per_second=7.0)
    assert best_so_far([made(warm_up=True)]) is None
    assert best_so_far([made(warm_up=True, decode_tokens_per_second=99.0), made(), fast]) == {
        "context_size": 1024,
        "threads": 4,
        "batch_size": 128,
        "decode_tokens_per_second": 7.0,
    }
