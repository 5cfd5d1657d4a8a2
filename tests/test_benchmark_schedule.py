"""Which runs a benchmark makes, in which order, and how their prompts begin."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from appliance.benchmark_plan import Run, schedule, settings, unique_words
from appliance.protocol import LoadOptions

A, B, C = (LoadOptions(num_ctx, 4, 128) for num_ctx in (512, 1024, 2048))
NAMES = {A: "A", B: "B", C: "C"}


def order(*args: object) -> str:
    """Such as "a A A b B": a small letter is a warm-up."""
    runs = schedule(*args)  # type: ignore[arg-type]
    return " ".join(NAMES[run.options].lower() if run.is_warm_up else NAMES[run.options] for run in runs)


def test_two_runs_of_two_settings_go_there_and_back() -> None:
    assert order([A, B], 2) == "a A b B B a A"


def test_the_setting_at_the_turn_stays_loaded_and_needs_no_second_warm_up() -> None:
    assert order([A, B, C], 2) == "a A b B c C C b B a A"


def test_the_larger_half_comes_first() -> None:
    assert order([A, B], 5) == "a A A A b B B B B B a A A"


def test_one_run_a_setting_is_one_block_each() -> None:
    assert order([A, B, C], 1) == "a A b B c C"


def test_a_single_setting_is_loaded_once() -> None:
    assert order([A], 5) == "a A A A A A"


def test_runs_are_numbered_from_one_warm_ups_too() -> None:
    assert schedule([A], 1) == [Run(1, A, is_warm_up=True), Run(2, A, is_warm_up=False)]


@given(count=st.integers(1, 16), runs=st.integers(1, 5))
def test_every_change_of_setting_begins_with_a_warm_up_and_no_other_run_is_one(count: int, runs: int) -> None:
    planned = schedule([LoadOptions(128 + i, 1, 8) for i in range(count)], runs)
    assert planned[0].is_warm_up
    assert all(after.is_warm_up == (after.options != before.options) for before, after in pairwise(planned))


@given(count=st.integers(1, 16), runs=st.integers(1, 5))
def test_every_setting_has_its_number_of_measured_runs(count: int, runs: int) -> None:
    asked = [LoadOptions(128 + i, 1, 8) for i in range(count)]
    measured = [run.options for run in schedule(asked, runs) if not run.is_warm_up]
    assert all(measured.count(options) == runs for options in asked)
    assert len(measured) == count * runs


@given(count=st.integers(2, 8), half=st.integers(1, 2))
def test_with_an_even_number_of_runs_steady_drift_weighs_alike_on_all_settings(count: int, half: int) -> None:
    asked = [LoadOptions(128 + i, 1, 8) for i in range(count)]
    measured = [run.options for run in schedule(asked, 2 * half) if not run.is_warm_up]
    moments = [sum(at for at, options in enumerate(measured) if options == own) for own in asked]
    assert len(set(moments)) == 1


def test_settings_are_all_combinations_the_first_list_varying_slowest() -> None:
    assert settings([512, 1024], [2], [8, 16]) == [
        LoadOptions(512, 2, 8),
        LoadOptions(512, 2, 16),
        LoadOptions(1024, 2, 8),
        LoadOptions(1024, 2, 16),
    ]


@given(seed=st.integers(0, 10**8 - 1))
def test_no_two_runs_of_a_benchmark_begin_alike(seed: int) -> None:
    beginnings = [unique_words(seed, number) for number in range(1, 112)]  # 16 settings of 5 runs, with warm-ups
    assert len(set(beginnings)) == len(beginnings)
    assert {len(words) for words in beginnings} == {len("Run 12345678: ")}
    assert all(first[:6] != second[:6] for first, second in pairwise(beginnings)), "neighbours differ at once"


def test_the_same_seed_gives_the_same_words() -> None:
    assert unique_words(7, 1) == unique_words(7, 1) == "Run 61803406: "
