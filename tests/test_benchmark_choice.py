"""Which setting a benchmark recommends, how sure it says it is, and the MAX_TOKENS that it derives."""

from __future__ import annotations

from math import exp, sqrt

import pytest
from benchmark_samples import decoded, made
from hypothesis import given
from hypothesis import strategies as st

from appliance.benchmark_choice import ANSWER_TIME_S, choose, max_tokens, recommend
from appliance.benchmark_report import Sample, Setting

SETTING = Setting(512, 4, 128)


def of(*runs: list[Sample]) -> list[Sample]:
    return [sample for samples in runs for sample in samples]


def test_the_faster_setting_wins_where_the_runs_agree() -> None:
    choice = choose(of(decoded([9.42, 9.38], context_size=512), decoded([8.11, 8.15], context_size=1024)))
    assert choice.setting.context_size == 512
    assert "runs of one setting scattered by 0.3%" in choice.reason
    assert "9.40 tokens/s (median of 2 runs, 9.38 to 9.42)" in choice.reason
    assert "15.6% more than the next of 2 settings (N_CTX=1024, N_THREADS=4, N_BATCH=128)" in choice.reason


def test_where_the_runs_scatter_as_much_as_the_settings_the_larger_context_wins() -> None:
    choice = choose(of(decoded([9.9, 8.0], context_size=512), decoded([8.0, 9.1], context_size=1024)))
    assert choice.setting.context_size == 1024
    assert "the 2 settings cannot be told apart (N_CTX=512, N_THREADS=4, N_BATCH=128 decoded 8.95" in choice.reason


def test_a_difference_under_the_noise_floor_is_none_however_alike_the_runs() -> None:
    choice = choose(of(decoded([10.0, 10.0, 10.0], context_size=512), decoded([9.85, 9.85, 9.85], context_size=1024)))
    assert choice.setting.context_size == 1024


def test_a_difference_above_the_noise_floor_counts_where_the_runs_are_identical() -> None:
    choice = choose(of(decoded([10.0, 10.0], context_size=512), decoded([9.7, 9.7], context_size=1024)))
    assert choice.setting.context_size == 512


def test_among_ties_the_larger_context_comes_before_fewer_threads_and_a_smaller_batch() -> None:
    rows = [(1024, 4, 512), (1024, 4, 128), (1024, 2, 512), (1024, 2, 256), (512, 1, 8)]
    runs = [decoded([5.0, 5.01], context_size=c, threads=t, batch_size=b) for c, t, b in rows]
    assert choose(of(*runs)).setting == Setting(1024, 2, 256)


def test_ties_are_with_the_fastest_and_leave_the_slow_out() -> None:
    slow = decoded([3.0, 3.02], context_size=4096)
    choice = choose(of(decoded([5.0, 5.02]), decoded([5.01, 4.99], context_size=1024), slow))
    assert choice.setting.context_size == 1024
    assert "the fastest 2 of 3 settings cannot be told apart" in choice.reason


def test_the_noise_of_all_settings_is_pooled() -> None:
    """By its own two runs each, the first pair would be told apart; the others show how little that says."""
    noisy = [decoded([8.0, 10.0], context_size=size) for size in (2048, 4096)]
    choice = choose(of(decoded([10.0, 10.01]), decoded([9.6, 9.61], context_size=1024), *noisy))
    assert choice.setting.context_size == 4096


@pytest.mark.parametrize(("errors_apart", "chosen"), [(3.7, 1024), (4.7, 512)])
def test_two_comparisons_need_a_clearer_difference_than_one(errors_apart: float, chosen: int) -> None:
    """With 3 degrees of freedom t is 3.18 at p = 0.05, but 4.18 at 0.025, the half for each of two comparisons."""
    noise = 0.03  # between the two runs of each setting, so that the error of a difference is 0.03 / sqrt(2)

    def pair(middle: float, context_size: int) -> list[Sample]:
        return decoded([middle * exp(-noise / 2), middle * exp(noise / 2)], context_size=context_size)

    near = 10 * exp(-errors_apart * noise / sqrt(2))
    choice = choose(of(pair(10, 512), pair(near, 1024), pair(5, 256)))
    assert choice.setting.context_size == chosen
    assert "corrected for 2 comparisons" in choice.reason


def test_one_run_a_setting_tells_only_large_differences_apart() -> None:
    near = choose(of(decoded([10.0], context_size=512), decoded([9.2], context_size=1024)))
    far = choose(of(decoded([10.0], context_size=512), decoded([8.9], context_size=1024)))
    assert (near.setting.context_size, far.setting.context_size) == (1024, 512)
    assert "one run a setting shows no spread, so differences of less than 10% count as none" in near.reason


def test_a_single_setting_is_recommended_without_a_comparison() -> None:
    choice = choose(decoded([5.0, 5.2]))
    assert choice.setting == SETTING
    assert "no other setting was measured" in choice.reason


def test_a_setting_whose_runs_made_no_two_tokens_is_not_chosen() -> None:
    assert choose(of(decoded([5.0, 5.1]), decoded([None, None], context_size=4096))).setting == SETTING


def test_without_any_throughput_the_reason_says_so() -> None:
    recommended = recommend(of(decoded([None]), decoded([None], context_size=1024)), "30m")
    assert recommended.env.N_CTX == 1024
    assert recommended.env.MAX_TOKENS == 16
    assert recommended.reason.startswith("No run made two tokens")


def test_warm_ups_do_not_choose() -> None:
    fast_warm_up = [made(warm_up=True, context_size=1024, decode_tokens_per_second=99.0)]
    choice = choose(of(decoded([9.0, 9.1]), fast_warm_up, decoded([5.0, 5.1], context_size=1024)))
    assert choice.setting.context_size == 512


rates = st.lists(st.floats(0.05, 500), min_size=1, max_size=5)


@given(measured=st.dictionaries(st.sampled_from([128, 512, 1024, 131072]), rates, min_size=1))
def test_whatever_was_measured_one_of_the_settings_is_recommended_with_a_valid_profile(
    measured: dict[int, list[float]],
) -> None:
    samples = of(*(decoded(values, context_size=size) for size, values in measured.items()))
    env = recommend(samples, "30m").env
    assert env.N_CTX in measured
    assert 16 <= env.MAX_TOKENS < env.N_CTX
    assert env.MAX_TOKENS % 8 == 0


def test_max_tokens_stay_under_the_answer_time_by_the_slowest_run() -> None:
    samples = decoded([5.0, 6.0], ttft_ms=2000.0)  # 28 s of 5 tokens/s are 140
    assert max_tokens(samples, SETTING) == 136
    assert ANSWER_TIME_S == 30


def test_max_tokens_leave_half_of_the_context_to_the_prompt() -> None:
    assert max_tokens(decoded([500.0]), SETTING) == 256


def test_max_tokens_leave_a_longer_prompt_its_room() -> None:
    assert max_tokens(decoded([500.0], prompt_tokens=401), SETTING) == 104


def test_max_tokens_are_no_more_than_a_request_may_ask_for() -> None:
    assert max_tokens(decoded([500.0], context_size=131072), Setting(131072, 4, 128)) == 2048


@pytest.mark.parametrize("sample", [{"rates": [0.1]}, {"rates": [5.0], "ttft_ms": 40_000.0}])
def test_max_tokens_are_at_least_sixteen_and_the_reason_admits_the_time(sample: dict[str, float]) -> None:
    values: list[float] = sample.pop("rates")  # type: ignore[assignment]
    recommended = recommend(decoded(values, **sample), "30m")
    assert recommended.env.MAX_TOKENS == recommended.request_defaults.max_tokens == 16
    assert "MAX_TOKENS=16 is the least there is and takes longer than 30 s" in recommended.reason
