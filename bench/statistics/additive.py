"""What rounds of blocks say about settings: each score is its setting's effect plus its round's plus noise. Pure.

The rounds need not be complete: settings come and go, and what two settings have in common is the rounds in which both
were, or chains of such rounds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)

ROUND_DEVIATION = 0.05  # how far the level of one round lies from that of another: drift over many minutes
PRIOR_DEVIATION = 0.02  # of a block's noise, before this machine's own is known
PRIOR_DEGREES = 4  # that many degrees of freedom the assumption is worth
CUT = 4.685  # Tukey's biweight: residuals of so many deviations count nothing, others lose up to 5 % of efficiency
POLISHES = 4


class Observation(NamedTuple, Generic[S]):
    setting: S
    round: int
    score: float


@dataclass(frozen=True)
class Fit(Generic[S]):
    """Effects of settings (as differences of scores; only their differences mean something) and how sure they are."""

    effects: dict[S, float]
    counts: dict[S, int]
    deviation: float
    degrees: int
    covariance: dict[S, dict[S, float]]

    def difference(self, one: S, other: S) -> float:
        return self.effects[one] - self.effects[other]

    def standard_error(self, one: S, other: S) -> float:
        if one == other:
            return 0.0
        unscaled = self.covariance[one][one] + self.covariance[other][other] - 2 * self.covariance[one][other]
        return self.deviation * math.sqrt(max(0.0, unscaled))


def fit(observations: Sequence[Observation[S]]) -> Fit[S]:
    """Effects by weighted least squares with random effects of the rounds.

    1. A median polish (Tukey 1977) gives residuals that outliers do not bend. Of two values the higher counts as their
       median: whatever else happens on a machine makes a block slower, not faster.
    2. Tukey's biweight of the residuals: a block that something disturbed counts little or nothing.
    3. Least squares with these weights, rounds being random with ROUND_DEVIATION (the mixed model of incomplete blocks
       with recovery of inter-block information: Yates 1940; Henderson 1975).
    4. The variance of a block's noise: that of the residuals, moderated by PRIOR_DEGREES of PRIOR_DEVIATION (Smyth
       2004), since the first rounds leave few degrees of freedom.
    """
    settings = list(dict.fromkeys(observation.setting for observation in observations))
    rounds = list(dict.fromkeys(observation.round for observation in observations))
    row = {setting: k for k, setting in enumerate(settings)}
    column = {number: k for k, number in enumerate(rounds)}
    cells = [(row[o.setting], column[o.round]) for o in observations]
    middle = median(o.score for o in observations)
    scores = [o.score - middle for o in observations]
    degrees = len(scores) - len(settings) - len(rounds) + 1
    residuals = _polished(cells, scores, len(settings), len(rounds))
    weights = _biweights(residuals, _scale(residuals, degrees))
    ratio = (PRIOR_DEVIATION / ROUND_DEVIATION) ** 2
    effects, inverse = _solved(cells, scores, weights, len(settings), len(rounds), ratio)
    left = max(0.0, sum(weights) - len(settings) - len(rounds) + 1)
    levels = _round_levels(cells, scores, weights, effects, len(rounds), ratio)
    squares = sum(
        weight * (score - effects[i] - levels[k]) ** 2
        for (i, k), score, weight in zip(cells, scores, weights, strict=True)
    )
    variance = (squares + PRIOR_DEGREES * PRIOR_DEVIATION**2) / (left + PRIOR_DEGREES)
    counts = dict.fromkeys(settings, 0)
    for observation in observations:
        counts[observation.setting] += 1
    return Fit(
        dict(zip(settings, effects, strict=True)),
        counts,
        math.sqrt(variance),
        int(left) + PRIOR_DEGREES,
        {one: dict(zip(settings, line, strict=True)) for one, line in zip(settings, inverse, strict=True)},
    )


def _polished(cells: Sequence[tuple[int, int]], scores: Sequence[float], rows: int, columns: int) -> list[float]:
    """Decision 1 of `fit`: what is left of the scores."""
    left = list(scores)
    in_row: list[list[int]] = [[] for _ in range(rows)]
    in_column: list[list[int]] = [[] for _ in range(columns)]
    for at, (i, k) in enumerate(cells):
        in_row[i].append(at)
        in_column[k].append(at)
    for _ in range(POLISHES):
        for members in in_row:
            centre = sorted(left[at] for at in members)[len(members) // 2]
            for at in members:
                left[at] -= centre
        for members in in_column:
            centre = median(left[at] for at in members)
            for at in members:
                left[at] -= centre
    return left


def _scale(residuals: Sequence[float], degrees: int) -> float:
    """A deviation by the median of absolute residuals, at least the prior one: few residuals may all be small."""
    if degrees <= 0:
        return PRIOR_DEVIATION
    spread = median(map(abs, residuals)) / 0.6745 * math.sqrt(len(residuals) / degrees)
    return max(PRIOR_DEVIATION, spread)


def _biweights(residuals: Sequence[float], scale: float) -> list[float]:
    return [max(0.0, 1 - (residual / (CUT * scale)) ** 2) ** 2 for residual in residuals]


def _solved(
    cells: Sequence[tuple[int, int]],
    scores: Sequence[float],
    weights: Sequence[float],
    rows: int,
    columns: int,
    ratio: float,
) -> tuple[list[float], list[list[float]]]:
    """Decision 3 of `fit`: the effects, and the inverse of their normal matrix after the rounds are eliminated."""
    members: list[list[tuple[int, float, float]]] = [[] for _ in range(columns)]
    for (i, k), score, weight in zip(cells, scores, weights, strict=True):
        members[k].append((i, weight, score))
    matrix = [[0.0] * rows for _ in range(rows)]
    right = [0.0] * rows
    for block in members:
        total = sum(weight for _, weight, _ in block) + ratio
        level = sum(weight * score for _, weight, score in block) / total
        for i, weight, score in block:
            matrix[i][i] += weight
            right[i] += weight * (score - level)
            for j, other, _ in block:
                matrix[i][j] -= weight * other / total
    inverse = _inverse(matrix)
    return [sum(a * b for a, b in zip(line, right, strict=True)) for line in inverse], inverse


def _round_levels(
    cells: Sequence[tuple[int, int]],
    scores: Sequence[float],
    weights: Sequence[float],
    effects: Sequence[float],
    columns: int,
    ratio: float,
) -> list[float]:
    above, below = [0.0] * columns, [ratio] * columns
    for (i, k), score, weight in zip(cells, scores, weights, strict=True):
        above[k] += weight * (score - effects[i])
        below[k] += weight
    return [a / b for a, b in zip(above, below, strict=True)]


def _inverse(matrix: list[list[float]]) -> list[list[float]]:
    """Of a symmetric positive definite matrix, by Gauss and Jordan; a whisper of a ridge keeps it definite."""
    n = len(matrix)
    lines = [[*line, *(float(i == k) for k in range(n))] for i, line in enumerate(matrix)]
    for i in range(n):
        lines[i][i] += 1e-9
    for i in range(n):
        pivot = lines[i][i]
        lines[i] = own = [value / pivot for value in lines[i]]
        for k in range(n):
            factor = lines[k][i]
            if k != i and factor:
                lines[k] = [value - factor * part for value, part in zip(lines[k], own, strict=True)]
    return [line[n:] for line in lines]
