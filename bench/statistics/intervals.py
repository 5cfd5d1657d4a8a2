"""How sure a figure is: quantiles, means and rates with confidence intervals. Pure; knows nothing of nodes or settings.

What one node does in one second resembles what it did the second before, so n samples say less than n independent ones
would. Every interval over a series therefore rests on batches: the series, in the order of time, is cut into contiguous
stretches, long enough to be nearly independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist, fmean
from typing import NamedTuple

from appliance.benchmark_choice import p_value

LEVEL = 0.95
BATCHES = 16
LEAST_BATCH = 2  # samples; shorter series are taken sample by sample


class Interval(NamedTuple):
    """From low to high; None where the data set no bound, such as above the p99 of fifty samples."""

    low: float | None
    high: float | None

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies, linearly between neighbours (type 7 of Hyndman & Fan 1996).

    Raises: ValueError without values.
    """
    if not values:
        raise ValueError("a quantile of no values")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def quantile_interval(values: Sequence[float], share: float, level: float = LEVEL) -> Interval:
    """A confidence interval of a quantile; `values` in the order of time.

    1. The share of the values at or below the estimate varies from batch to batch; Student's t on the batches gives how
       far the true share may be from the wanted one (batch means: Law & Carson 1979).
    2. It is never taken to vary less than independent samples would: the binomial standard error is the least.
    3. The order statistics at the wanted share minus and plus that much are the bounds (Woodruff 1952). A rank outside
       the series is no bound.
    """
    n = len(values)
    if n < 2:
        return Interval(None, None)
    estimate = quantile(values, share)
    below = [fmean(float(value <= estimate) for value in batch) for batch in batches(values)]
    degrees = len(below) - 1
    by_batches = student(level, degrees) * _standard_error(below)
    reach = max(by_batches, NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(share * (1 - share) / n))
    ordered = sorted(values)
    low, high = round(n * (share - reach)), round(n * (share + reach))
    return Interval(ordered[low - 1] if low >= 1 else None, ordered[high] if high < n else None)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """A confidence interval of the mean; `values` in the order of time: Student's t on batch means."""
    if len(values) < 2:
        return Interval(None, None)
    means = [fmean(batch) for batch in batches(values)]
    reach = student(level, len(means) - 1) * _standard_error(means)
    return Interval(fmean(values) - reach, fmean(values) + reach)


def rate_interval(hits: int, n: int, level: float = LEVEL) -> Interval:
    """A confidence interval of a rate of independent trials (Clopper & Pearson 1934): never narrower than it says."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _solve(lambda rate: 1 - binomial_below(hits - 1, n, rate) - tail)
    high = 1.0 if hits == n else _solve(lambda rate: tail - binomial_below(hits, n, rate))
    return Interval(low, high)


def batches(values: Sequence[float]) -> list[Sequence[float]]:
    """BATCHES contiguous stretches of about equal length; the values one by one where they are too few for that."""
    count = BATCHES if len(values) >= BATCHES * LEAST_BATCH else len(values)
    edges = [round(k * len(values) / count) for k in range(count + 1)]
    return [values[low:high] for low, high in pairwise(edges)]


@lru_cache(maxsize=4096)
def student(level: float, degrees: int) -> float:
    """How many standard errors a two-sided interval of this level reaches: Student's t, `p_value` solved for it.

    Raises: ValueError without a degree of freedom.
    """
    if degrees < 1:
        raise ValueError("Student's t needs at least one degree of freedom")
    highest = 2.0
    while p_value(highest, degrees) > 1 - level:
        highest *= 2
    return _solve(lambda t: (1 - level) - p_value(t, degrees), 0.0, highest)


def binomial_below(hits: int, n: int, rate: float) -> float:
    """The probability of at most so many hits in n independent trials."""
    if rate <= 0:
        return 1.0
    if rate >= 1:
        return float(hits >= n)
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(rate)
        + (n - k) * math.log1p(-rate)
        for k in range(hits + 1)
    )
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def _standard_error(values: Sequence[float]) -> float:
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _solve(rising: Callable[[float], float], low: float = 0.0, high: float = 1.0) -> float:
    """Where a rising function is zero, by halving."""
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
