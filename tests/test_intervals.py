"""Quantiles, means and rates have the intervals that tables and simulations say."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics.intervals import (
    Interval,
    batches,
    binomial_below,
    mean_interval,
    quantile,
    quantile_interval,
    rate_interval,
    student,
)


@pytest.mark.parametrize(("share", "expected"), [(0, 1), (0.5, 3), (0.95, 4.8), (1, 5)])
def test_quantiles_lie_linearly_between_neighbours(share: float, expected: float) -> None:
    assert quantile([5, 3, 1, 2, 4], share) == pytest.approx(expected)


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@pytest.mark.parametrize(
    ("level", "degrees", "t"), [(0.95, 1, 12.706), (0.95, 15, 2.131), (0.99, 5, 4.032), (0.999, 40, 3.551)]
)
def test_students_t_is_that_of_the_tables(level: float, degrees: int, t: float) -> None:
    assert student(level, degrees) == pytest.approx(t, abs=6e-4)


def test_students_t_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="degree"):
        student(0.95, 0)


# As Clopper and Pearson's tables have them.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (5, 100, 0.0164, 0.1128)]
)
def test_a_rate_has_the_interval_of_the_tables(hits: int, n: int, low: float, high: float) -> None:
    assert rate_interval(hits, n) == pytest.approx(Interval(low, high), abs=1e-4)


def test_binomial_probabilities_are_those_of_coins() -> None:
    assert binomial_below(1, 3, 0.5) == pytest.approx(0.5)
    assert binomial_below(3, 3, 0.5) == pytest.approx(1.0)
    assert (binomial_below(0, 5, 0.0), binomial_below(4, 5, 1.0)) == (1.0, 0.0)


def test_a_mean_of_few_values_has_students_interval() -> None:
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)


def test_one_value_sets_no_bounds() -> None:
    assert mean_interval([3.0]) == quantile_interval([3.0], 0.5) == Interval(None, None)


def test_fifty_values_set_no_upper_bound_for_p99() -> None:
    interval = quantile_interval([float(k * 7 % 50) for k in range(50)], 0.99)
    assert interval.high is None
    assert interval.low is not None


def test_values_that_resemble_their_neighbours_say_less() -> None:
    waves = [math.sin(k / 30) + random.Random(k).gauss(0, 0.1) for k in range(400)]
    mixed = random.Random(1).sample(waves, len(waves))
    assert _width(quantile_interval(waves, 0.5)) > 2 * _width(quantile_interval(mixed, 0.5))
    assert _width(mean_interval(waves)) > 2 * _width(mean_interval(mixed))


def _width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=100))
def test_batches_are_the_series_in_order_and_about_equal(values: list[float]) -> None:
    cut = batches(values)
    assert [value for batch in cut for value in batch] == values
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@given(st.lists(st.floats(0.001, 1e6), min_size=2, max_size=80), st.floats(0.01, 0.99))
def test_the_quantile_lies_in_its_interval(values: list[float], share: float) -> None:
    low, high = quantile_interval(values, share)
    estimate = quantile(values, share)
    assert low is None or low <= estimate * (1 + 1e-9)
    assert high is None or estimate <= high * (1 + 1e-9)
