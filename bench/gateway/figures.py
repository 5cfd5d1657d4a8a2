"""Percentiles, pairing, verdicts and tables. Pure: takes samples, returns words and numbers.

A measure's samples are kept by subject and round, `samples[subject][round]` being a list of values: what is compared
was measured in the same round, so that a slow minute of the machine hits all subjects alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor
from statistics import median
from typing import Literal, TypeAlias

Rounds: TypeAlias = list[list[float]]
Kind: TypeAlias = Literal["ratio", "difference", "value"]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie, interpolated linearly between neighbours."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below = floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


@dataclass(frozen=True)
class Spread:
    """A median, and the smallest and largest of n values around it."""

    median: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(median(values), min(values), max(values), len(values))


@dataclass
class Measure:
    """One thing measured for each subject, round by round.

    percentiles: those shown, of all rounds' values together; the first is also what rounds are compared by.
    """

    name: str
    unit: str
    percentiles: tuple[float, ...] = (0.5,)
    samples: dict[str, Rounds] = field(default_factory=dict)

    def add(self, subject: str, values: Sequence[float]) -> None:
        """Append one round's values of one subject."""
        self.samples.setdefault(subject, []).append(list(values))

    def values(self, subject: str) -> list[float]:
        return [value for values in self.samples.get(subject, []) for value in values]

    def by_round(self, subject: str, share: float | None = None) -> list[float]:
        """Each round's percentile."""
        share = self.percentiles[0] if share is None else share
        return [percentile(values, share) for values in self.samples.get(subject, []) if values]

    def paired(self, subject: str, base: str, kind: Kind, share: float | None = None) -> list[float]:
        """The subject's ratio to `base`, or difference from it, round by round."""
        pairs = zip(self.by_round(subject, share), self.by_round(base, share), strict=False)
        if kind == "ratio":
            return [value / other for value, other in pairs if other > 0]
        return [value - other for value, other in pairs]


@dataclass(frozen=True)
class Verdict:
    """Whether a target was reached, with the figure. None when it was not measured."""

    target: str
    figure: str
    is_reached: bool | None

    def line(self) -> str:
        word = {True: "reached", False: "NOT reached", None: "not measured"}[self.is_reached]
        return f"{word:<13} {self.target}: {self.figure}"


def judge(target: str, values: Sequence[float], limit: float, unit: str = "") -> Verdict:
    """At most `limit`, judged by the median of the rounds; says so when rounds lie on both sides."""
    if not values:
        return Verdict(target, "-", None)
    spread = Spread.of(values)
    unsure = ", rounds on both sides" if spread.low <= limit < spread.high else ""
    figure = f"{number(spread.median)}{unit} ({number(spread.low)} to {number(spread.high)}, {spread.n} rounds{unsure})"
    return Verdict(target, figure, spread.median <= limit)


def judge_all(target: str, values: Sequence[float], limit: float, unit: str = "") -> Verdict:
    """At most `limit`, every single value."""
    if not values:
        return Verdict(target, "-", None)
    spread = Spread.of(values)
    return Verdict(
        target,
        f"at most {number(spread.high)}{unit} (median {number(spread.median)}, n {spread.n})",
        spread.high <= limit,
    )


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def table(measures: Sequence[Measure], subjects: Sequence[str], subject: str, base: str) -> list[str]:
    """A line for each measure and percentile: each subject's figure with its spread, then `subject` against `base`."""
    rows = [["", *subjects, f"{subject} / {base}", "n"]]
    for measure in measures:
        several = len(measure.percentiles) > 1
        for share in measure.percentiles:
            name = f"{measure.name}{f' p{share * 100:.0f}' if several else ''}, {measure.unit}"
            cells = [_cell(measure, each, share) for each in subjects]
            ratios = measure.paired(subject, base, "ratio", share)
            sizes = {len(measure.values(each)) for each in subjects if measure.values(each)}
            rows.append([name, *cells, _ratio(ratios), "/".join(str(size) for size in sorted(sizes))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _cell(measure: Measure, subject: str, share: float) -> str:
    values = measure.values(subject)
    if not values:
        return "-"
    rounds = Spread.of(measure.by_round(subject, share))
    return f"{number(percentile(values, share))} ({number(rounds.low)}-{number(rounds.high)})"


def _ratio(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    spread = Spread.of(ratios)
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"
