"""Which of several equals is none: nodes that are slower or faster than chance would have them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev

from appliance.benchmark_choice import p_value

TEST = "generalized extreme Studentized deviate test (Rosner 1983)"
ALPHA = 0.05
LEAST_NODES = 4  # of three, none can be told apart: with one degree of freedom nothing is surprising
LEAST_SHARE = 0.05  # a smaller difference is of no use to know
MOST_SHARE = 1 / 3  # of the nodes; with more of them it is the others that are odd


@dataclass(frozen=True)
class Outlier:
    """`change`: beside the median of all its equals, as a share. p: corrected for the number of nodes."""

    node: str
    value: float
    change: float
    p: float
    n: int
    test: str = TEST


def outliers(values: Mapping[str, float]) -> list[Outlier]:
    """Those that stand out, the most extreme first; figures are above 0.

    1. On logarithms, since differences are shares.
    2. The most extreme node is tested against all others and taken out, then the next: Student's t of its distance
       from the others' mean, with their own spread, two-sided, times the number of nodes and of steps (Bonferroni).
    3. The last that is significant is an outlier, and all that were taken out before it: so two that hide each other
       in the spread are found, both with the p that gave them away.
    4. Less than LEAST_SHARE is not told.
    """
    left = {node: math.log(value) for node, value in values.items() if value > 0}
    n = len(left)
    if n < LEAST_NODES:
        return []
    centre = median(left.values())
    taken: list[Outlier] = []
    found = 0
    steps = max(1, math.floor(n * MOST_SHARE))
    for _ in range(steps):
        mean = fmean(left.values())
        node = max(left, key=lambda name: abs(left[name] - mean))
        p = min(1.0, steps * _p(left, node))
        taken.append(Outlier(node, values[node], math.expm1(left.pop(node) - centre), p, n))
        if p < ALPHA:
            found = len(taken)
    told = [replace(outlier, p=min(later.p for later in taken[k:found])) for k, outlier in enumerate(taken[:found])]
    return [outlier for outlier in told if abs(outlier.change) >= LEAST_SHARE]


def _p(values: Mapping[str, float], node: str) -> float:
    others = [value for name, value in values.items() if name != node]
    distance, spread = abs(values[node] - fmean(others)), stdev(others)
    if spread == 0:
        return 0.0 if distance > 0 else 1.0
    t = distance / (spread * math.sqrt(1 + 1 / len(others)))
    return min(1.0, len(values) * p_value(t, len(others) - 1))
