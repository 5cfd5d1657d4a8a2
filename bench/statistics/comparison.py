"""Two arms measured in interleaved rounds: faster, slower, or no significant difference. Pure.

A round is one block of each arm, in an order that chance decides anew for each round (`first_arms`). That is the whole
argument: what drifts, repeats itself or bursts on the machine meanwhile falls on either arm with the same chance, so
if the arms are the same, every log ratio of a round is as likely to be d as -d, whatever the noise looks like; and the
signed-rank test is exact (Fisher 1935; Wilcoxon 1945; Lehmann, Nonparametrics, 1975, chapter 4). Without the
random order nothing here holds.

Looking at the data after every round and stopping at the first p < 0.05 would find differences where there are none, in
more than a fifth of all cases. So the looks are few and planned, and each may spend only its part of ALPHA.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, median
from typing import Literal, NamedTuple

from appliance.benchmark_choice import p_value

ALPHA = 0.05
LOOKS = (12, 16, 21)  # rounds; of some 52 s each on a Pi (bench/truth/surfaces.py): the last after 18 minutes

Kind = Literal["faster", "slower", "same"]


class Look(NamedTuple):
    """After so many rounds the data may be looked at, and a p below `alpha` ends the comparison."""

    rounds: int
    alpha: float


@dataclass(frozen=True)
class Verdict:
    """What a comparison says of `new` beside `old`.

    kind: "same" means "no significant difference", which is not "proven equal": see `is_equivalent`.
    change: of the figure, as a share: 0.12 is 12 % more. The Hodges-Lehmann estimate.
    ci95: of the change. Where there are several looks each interval is a little wider, so that all looks together
      are right in 95 % (repeated confidence intervals: Jennison & Turnbull 1989).
    p: two-sided, exact, of this look alone; it is significant below `alpha`, this look's part of ALPHA.
    n: rounds. is_final: no further look would change anything: the difference is found, or the last look is over.
    """

    kind: Kind
    change: float
    ci95: tuple[float, float]
    p: float
    alpha: float
    n: int
    is_final: bool

    def is_equivalent(self, margin: float) -> bool:
        """Whether the whole interval lies inside ± margin: then, and only then, the arms are shown to be equal."""
        return -margin < self.ci95[0] and self.ci95[1] < margin

    def __str__(self) -> str:
        low, high = self.ci95
        near, far = sorted((abs(low), abs(high)))
        is_bounded = math.isfinite(high)  # a share's lower bound is -100 % at least
        if self.kind == "same":
            interval = f"{_percent(low)} to {_percent(high)}" if is_bounded else "unknown: too few rounds"
            return f"no significant difference ({_percent(self.change)} %, 95 % CI {interval})"
        interval = f"{_size(near)}-{_size(far)}" if is_bounded else "unknown: too few rounds"
        return f"{self.kind} by {_size(self.change)} % (95 % CI {interval})"


def looks(rounds: Sequence[int] = LOOKS, alpha: float = ALPHA) -> tuple[Look, ...]:
    """How much of `alpha` each look may spend, when looking after these numbers of rounds.

    Until the share t of all rounds 2 - 2 Φ(z / √t) may have been spent, z the normal quantile of 1 - alpha / 2 (Lan &
    DeMets 1983, the O'Brien-Fleming form): little early on, nearly all at the end. Each look gets the difference to the
    look before; their sum is alpha, so no joint distribution is needed (Bonferroni). A look that may spend no more than
    the least p there is (all rounds alike: 2 / 2^n) can find nothing, and would have an interval without bounds: it is
    left out, and the next one may spend its part.
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha / 2)
    plan, spent = list[Look](), 0.0
    for of in rounds:
        part = 2 - 2 * normal.cdf(z / math.sqrt(of / rounds[-1])) - spent
        if part > 2 / 2**of or of == rounds[-1]:
            plan.append(Look(of, part))
            spent += part
    return tuple(plan)


def first_arms(rounds: int, rng: random.Random) -> list[int]:
    """Which arm is measured first, 0 or 1, for each round: by independent tosses; the test's exactness rests on it."""
    return [rng.randrange(2) for _ in range(rounds)]


def compare(
    old: Sequence[float], new: Sequence[float], is_more_better: bool = True, plan: Sequence[Look] | None = None
) -> Verdict | None:
    """The verdict on figures of rounds: old[k] and new[k] were measured in round k.

    plan: the looks that were planned; None: one look, at what there is.
    1. The latest planned look that the rounds suffice for counts, with the rounds until then. Before the first: None.
    2. d[k] = log(new[k] / old[k]): changes are shares, and what slows a whole round falls out.
    3. p: Wilcoxon's signed-rank test, exact. change: the Hodges-Lehmann estimate, the median of all means of two d.
    4. The interval: the order statistics of these means that the test does not reject (Hodges & Lehmann 1963).
    Raises: ValueError for arms of unequal length and figures that are not above 0.
    """
    if len(old) != len(new):
        raise ValueError(f"{len(old)} rounds of one arm and {len(new)} of the other")
    if min((*old, *new), default=1.0) <= 0:
        raise ValueError("a figure that is not above 0")
    plan = plan or (Look(len(old), ALPHA),)
    due = [look for look in plan if look.rounds <= len(old)]
    if not due or not due[-1].rounds:
        return None
    look = due[-1]
    differences = [math.log(b) - math.log(a) for a, b in zip(old[: look.rounds], new[: look.rounds], strict=True)]
    change, low, high, p = signed_rank(differences, 1 - look.alpha)
    is_significant = p < look.alpha
    kind: Kind = "same" if not is_significant else "faster" if (change > 0) == is_more_better else "slower"
    return Verdict(
        kind=kind,
        change=math.expm1(change),
        ci95=(math.expm1(low), math.expm1(high)),
        p=p,
        alpha=look.alpha,
        n=look.rounds,
        is_final=is_significant or look == plan[-1],
    )


def is_surely_higher(one: Sequence[float], other: Sequence[float], alpha: float = ALPHA) -> bool:
    """Whether `one` lies higher by Student's two-sample t, pooled, two-sided; never by less than two values each."""
    degrees = len(one) + len(other) - 2
    if min(len(one), len(other)) < 2:
        return False
    distance = fmean(one) - fmean(other)
    squares = sum((value - fmean(arm)) ** 2 for arm in (one, other) for value in arm)
    error = math.sqrt(squares / degrees * (1 / len(one) + 1 / len(other)))
    return distance > 0 and (error == 0 or p_value(distance / error, degrees) < alpha)


class SignedRank(NamedTuple):
    """Of symmetric differences: the Hodges-Lehmann estimate, its interval, and p of "the centre is 0"."""

    estimate: float
    low: float
    high: float
    p: float


def signed_rank(differences: Sequence[float], level: float) -> SignedRank:
    """Wilcoxon's signed-rank test and the interval that belongs to it.

    The test statistic is the number of Walsh averages (means of two differences, of each with itself too) above 0,
    halves for those at 0 (Tukey 1949); that number needs no ranks and gives test, estimate and interval alike. With
    too few differences for the level the interval is unbounded.
    """
    n = len(differences)
    walsh = sorted((differences[i] + differences[j]) / 2 for i in range(n) for j in range(i, n))
    below = _below(n)
    above_0 = sum(mean > 0 for mean in walsh) + sum(mean == 0 for mean in walsh) / 2
    p = min(1.0, 2 * below[math.floor(min(above_0, len(walsh) - above_0))])
    outside = sum(2 * probability <= 1 - level for probability in below)  # so many averages lie outside at each end
    if not outside:
        return SignedRank(median(walsh), -math.inf, math.inf, p)
    return SignedRank(median(walsh), walsh[outside - 1], walsh[-outside], p)


@lru_cache(maxsize=256)
def _below(n: int) -> tuple[float, ...]:
    """P(T <= t) for t = 0, 1, … where T is the sum of those of the ranks 1 to n whose coins fell heads."""
    ways = [1]
    for rank in range(1, n + 1):
        longer = ways + [0] * rank
        for total, count in enumerate(ways):
            longer[total + rank] += count
        ways = longer
    cumulated, total = [], 0
    for count in ways:
        total += count
        cumulated.append(total / 2**n)
    return tuple(cumulated)


def _size(share: float) -> str:
    return f"{abs(share) * 100:.2g}" if abs(share) < 0.1 else f"{abs(share) * 100:.0f}"


def _percent(share: float) -> str:
    return f"{share * 100:+.1f}"
