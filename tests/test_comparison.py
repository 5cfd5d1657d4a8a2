"""Two arms in interleaved rounds: the test is the tables', looks are paid for, and the words say no more than that."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics.comparison import (
    ALPHA,
    LOOKS,
    Look,
    Verdict,
    compare,
    first_arms,
    is_surely_higher,
    looks,
    signed_rank,
)
from bench.statistics.intervals import NormalDist

FLAT = [10.0, 10.1, 9.9, 10.2, 9.8, 10.05, 9.95, 10.15, 9.85, 10.02, 9.98, 10.07]


def shuffled(values: list[float], by: float = 1.0, seed: int = 1) -> list[float]:
    return [value * by for value in random.Random(seed).sample(values, len(values))]


# Two-sided: twice the share of the 2^n signs that reach the rank sum. For n = 10 the tables have 8 at 0.05.
@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2 / 32),
        ([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 4 / 64),
        ([-1.0, -7.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 9.0, 10.0], 0.0488),
        ([-1.0, 1.5], 1.0),
    ],
)
def test_p_is_that_of_the_tables_of_the_signed_rank_test(differences: list[float], p: float) -> None:
    assert signed_rank(differences, 0.95).p == pytest.approx(p, abs=1e-4)


def test_the_interval_is_made_of_the_averages_that_the_test_does_not_reject() -> None:
    found = signed_rank([float(k) for k in range(1, 11)], 0.95)
    assert (found.estimate, found.low, found.high) == (5.5, 3.0, 8.0)  # the 9th of 55 from either end


def test_too_few_differences_set_no_bounds() -> None:
    found = signed_rank([1.0, 2.0, 3.0], 0.95)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_one_wild_round_moves_the_estimate_little() -> None:
    calm = [0.01 * k for k in range(12)]
    wild = [*calm[:-1], 9.0]
    assert signed_rank(wild, 0.95).estimate == pytest.approx(signed_rank(calm, 0.95).estimate, abs=0.01)


def test_twelve_percent_more_is_faster_by_twelve_percent() -> None:
    verdict = compare(FLAT, shuffled(FLAT, 1.12))
    assert verdict is not None
    assert verdict.kind == "faster"
    assert verdict.ci95[0] < 0.12 < verdict.ci95[1]
    assert str(verdict).startswith("faster by 12 % (95 % CI ")


def test_more_of_what_should_be_little_is_slower() -> None:
    verdict = compare(FLAT, shuffled(FLAT, 1.12), is_more_better=False)
    assert verdict is not None
    assert verdict.kind == "slower"


def test_no_difference_says_so_and_is_equal_only_inside_a_margin() -> None:
    verdict = compare(FLAT, shuffled(FLAT))
    assert verdict is not None
    assert str(verdict).startswith("no significant difference (")
    assert not verdict.is_equivalent(0.005)
    assert verdict.is_equivalent(0.05)


def test_before_the_first_look_there_is_no_verdict_and_between_looks_the_last_one_counts() -> None:
    plan = (Look(8, 0.01), Look(12, 0.04))
    new = shuffled(FLAT)
    assert compare(FLAT[:7], new[:7], plan=plan) is None
    early, between = (compare(FLAT[:n], new[:n], plan=plan) for n in (8, 11))
    assert early == between
    assert early is not None
    assert (early.n, early.is_final) == (8, False)


def test_a_found_difference_ends_the_comparison_early() -> None:
    verdict = compare(FLAT, shuffled(FLAT, 1.5), plan=looks((12, 24)))
    assert verdict is not None
    assert (verdict.kind, verdict.n, verdict.is_final) == ("faster", 12, True)


def test_looks_spend_alpha_once_and_mostly_at_the_end() -> None:
    plan = looks(LOOKS)
    assert sum(look.alpha for look in plan) == pytest.approx(ALPHA)
    assert [look.alpha for look in plan] == sorted(look.alpha for look in plan)
    first = 2 - 2 * NormalDist().cdf(1.959964 / math.sqrt(LOOKS[0] / LOOKS[-1]))
    assert plan[0].alpha == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("rounds", [(6, 8), (6, 7, 9), (7, 11, 14), (8, 12, 16), LOOKS])
def test_a_look_that_could_find_nothing_is_left_out_and_its_alpha_is_not_lost(rounds: tuple[int, ...]) -> None:
    plan = looks(rounds)
    assert all(look.alpha > 2 / 2**look.rounds for look in plan)
    assert plan[-1].rounds == rounds[-1]
    assert sum(look.alpha for look in plan) == pytest.approx(ALPHA)


def test_an_interval_without_bounds_is_told_as_unknown() -> None:
    verdict = compare(FLAT[:4], shuffled(FLAT[:4], 1.5))
    assert "95 % CI unknown: too few rounds)" in str(verdict)


@pytest.mark.parametrize(("old", "new"), [([1.0], []), ([1.0], [0.0]), ([-1.0], [1.0])])
def test_what_cannot_be_compared_is_refused(old: list[float], new: list[float]) -> None:
    with pytest.raises(ValueError, match=r"rounds of one arm|not above 0"):
        compare(old, new)


def test_chance_decides_who_goes_first() -> None:
    order = first_arms(1000, random.Random(1))
    assert set(order) == {0, 1}
    assert 400 < sum(order) < 600


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=6, max_size=20))
def test_swapped_arms_have_the_opposite_verdict(rounds: list[tuple[float, float]]) -> None:
    old, new = [a for a, _ in rounds], [b for _, b in rounds]
    one, other = compare(old, new), compare(new, old)
    assert isinstance(one, Verdict)
    assert isinstance(other, Verdict)
    assert one.p == pytest.approx(other.p)
    assert math.log1p(one.change) == pytest.approx(-math.log1p(other.change), abs=1e-9)
    assert {"faster": "slower", "slower": "faster", "same": "same"}[one.kind] == other.kind


@pytest.mark.parametrize(
    ("one", "other", "is_higher"),
    [
        ([2.01, 2.03], [1.61, 1.63], True),
        ([1.61, 1.63], [2.01, 2.03], False),
        ([5.0, 4.5], [4.6, 3.7], False),
        ([2.02], [1.61, 1.63], False),
        ([2.0, 2.0], [1.0, 1.0], True),
    ],
    ids=["higher", "lower", "scattered", "a single value", "without any scatter"],
)
def test_two_samples_are_told_apart_only_surely(one: list[float], other: list[float], is_higher: bool) -> None:
    assert is_surely_higher(one, other) is is_higher
