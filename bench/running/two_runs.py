"""Two runs beside each other, load by load. Pure.

They were measured one after the other, or on two nodes, not interleaved: what else changed between them cannot be told
from what they are compared for. Only `bench verify` can do that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from statistics import fmean, median
from typing import Any, NamedTuple

from bench.running.samples import Run, Sample, Stage
from bench.statistics.comparison import ALPHA, Kind, Verdict
from bench.statistics.intervals import batches


class Quantity(NamedTuple):
    name: str
    is_more_better: bool


QUANTITIES = (
    Quantity("decode_tokens_per_s", True),
    Quantity("prefill_tokens_per_s", True),
    Quantity("ttft_s", False),
    Quantity("tpot_s", False),
    Quantity("e2e_s", False),
)


class Row(NamedTuple):
    """One quantity under one load. a, b: medians of all samples, in the quantity's own unit."""

    load: str
    quantity: str
    a: float
    b: float
    verdict: Verdict


def rows(a: Run, b: Run) -> list[Row]:
    """What both measured under the same load."""
    theirs = {str(stage.load): stage for stage in b.stages}
    pairs = [(stage, theirs[str(stage.load)]) for stage in a.stages if str(stage.load) in theirs]
    return [row for one, other in pairs for row in _rows(one, other)]


def differences(a: Run, b: Run) -> list[str]:
    """What else differs between the two, so that the figures may for another reason."""
    found = []
    if a.settings.prompt_tokens != b.settings.prompt_tokens or a.settings.max_tokens != b.settings.max_tokens:
        found.append("other prompt or answer lengths")
    elif a.trace != b.trace:
        found.append("other prompts (another --seed, or another count of tokens)")
    for name, path in FINGERPRINT.items():
        was, now = (_at(run.fingerprint, *path) for run in (a, b))
        if was is not None and now is not None and was != now:
            found.append(f"{name}: {was} and {now}")
    return found


FINGERPRINT: dict[str, tuple[str, ...]] = {
    "model": ("model",),
    "model digest": ("node", "model", "digest"),
    "Ollama": ("node", "engine", "version"),
    "appliance": ("appliance",),
    "board": ("node", "board", "name"),
    "governor": ("node", "governor"),
    "N_CTX": ("node", "settings", "N_CTX"),
    "N_THREADS": ("node", "settings", "N_THREADS"),
    "N_BATCH": ("node", "settings", "N_BATCH"),
    "MAX_CONCURRENT_REQUESTS": ("node", "settings", "MAX_CONCURRENT_REQUESTS"),
}


def two_samples(a: Sequence[float], b: Sequence[float], is_more_better: bool = True) -> Verdict:
    """The verdict on b beside a; both in the order of time, and above 0.

    1. Neighbours resemble each other, so means of contiguous batches are compared, not samples (see intervals.py).
    2. p: the Mann-Whitney U test, exact (Mann & Whitney 1947), on their logarithms. change: the Hodges-Lehmann
    estimate, the median of all differences; its interval the differences that the test does not reject.
    """
    first, second = ([fmean(map(math.log, batch)) for batch in batches(values)] for values in (a, b))
    shifts = sorted(y - x for x in first for y in second)
    above = sum(shift > 0 for shift in shifts) + sum(shift == 0 for shift in shifts) / 2
    below = _below(len(first), len(second))
    p = min(1.0, 2 * below[math.floor(min(above, len(shifts) - above))])
    outside = sum(2 * probability <= ALPHA for probability in below)
    low, high = (shifts[outside - 1], shifts[-outside]) if outside else (-math.inf, math.inf)
    change = median(shifts)
    kind: Kind = "same" if p >= ALPHA else "faster" if (change > 0) == is_more_better else "slower"
    bounds = math.expm1(low), math.expm1(high) if high < math.inf else math.inf
    return Verdict(kind, math.expm1(change), bounds, p, ALPHA, min(len(first), len(second)), True)


def _rows(one: Stage, other: Stage) -> Iterator[Row]:
    for quantity in QUANTITIES:
        a, b = (_values(stage.measured, quantity.name) for stage in (one, other))
        if len(a) > 1 and len(b) > 1:
            verdict = two_samples(a, b, quantity.is_more_better)
            yield Row(str(one.load), quantity.name, median(a), median(b), verdict)


def _values(samples: Sequence[Sample], name: str) -> list[float]:
    ordered = sorted(samples, key=lambda sample: sample.planned_s)
    values = (getattr(sample, name) for sample in ordered if not sample.failure)
    return [value for value in values if value is not None and value > 0]


@lru_cache(maxsize=256)
def _below(m: int, n: int) -> tuple[float, ...]:
    """P(U <= u) for u = 0, 1, … m n, when both samples are alike.

    The number of ways is a Gaussian binomial coefficient: multiply by (1 - q^(n+i)) and divide by (1 - q^i), i to m.
    """
    ways = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            ways[u] -= ways[u - n - i]
        for u in range(i, m * n + 1):
            ways[u] += ways[u - i]
    total, cumulated, below = sum(ways), 0, []
    for count in ways:
        cumulated += count
        below.append(cumulated / total)
    return tuple(below)


def _at(found: Any, *path: str) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found
