"""What the data of a race say between two rounds: who leads, who is out, who is an equal, who still matters. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Iterable
from statistics import fmean
from typing import Literal

from bench.statistics.additive import Fit
from bench.statistics.intervals import LEVEL, student
from bench.tuning.space import Settings

LEAST_BLOCKS = 2
PROMISING = 3
SURPRISE = 0.36  # log: what else runs on a machine may take 30 % of the speed of one block
LEAST_ALPHA = 1e-6

Preference = Callable[[Settings], tuple[float, ...]]
FateName = Literal["winner", "tied", "worse", "no better", "undecided", "ruled out", "not measured", "not visited"]


class Judgement:
    """One look at the data.

    The race may end at any look, and each has another leader and other settings, so the bounds must hold for all looks
    and settings together. A look may spend `alpha`; the race hands out ALPHA in proportion to the budget spent
    (Lan & DeMets 1983), so that the looks need not be planned; and Bonferroni divides it by what is judged. All bounds
    are Student's t on the fit's standard errors, one-sided.

    1. The leader is the eligible setting with the highest effect.
    2. Worse: the loss to the leader is surely more than 0, `alpha` divided by all others: so the truly best one is
       called worse in at most ALPHA of all races (successive elimination: Maron & Moore 1994, Even-Dar et al. 2002). A
       single block must show a loss of more than SURPRISE for that. It stays so for the rest of the race.
    3. Tied: the loss is surely less than the margin: an equivalence (Schuirmann 1987), which lack of data never makes.
       Half of `alpha`, divided by the settings that are preferred to the leader: only these can win by a tie.
    4. The winner is the preferred one among the leader and its ties.
    5. No better: surely less than the margin ahead of the winner, and not preferred to it. The other half of `alpha`,
       undivided: a race is sure when all others are so, and of tests that must all succeed none needs a correction
       (intersection-union: Berger 1982).
    6. Contenders are those that still matter: preferred to the winner, perhaps ahead by the margin, with less than
       LEAST_BLOCKS, or the default, on whose verdict it depends whether a profile is written.
    """

    def __init__(
        self,
        fit: Fit[Settings],
        eligible: Collection[Settings],
        worse: Collection[Settings],
        alpha: float,
        margin: float,
        default: Settings,
        preference: Preference,
    ) -> None:
        """eligible: measured, and within the limits. worse: by earlier looks. margin: a share."""
        self.fit, self.eligible, self.default, self.preference = fit, eligible, default, preference
        self.margin = -math.log1p(-margin)
        self.worse, self.tied, self.undecided = set(worse), set[Settings](), list[Settings]()
        self.leader: Settings | None = None
        self.winner: Settings | None = None
        self._alpha = max(alpha, LEAST_ALPHA)
        alive = [s for s in eligible if s not in self.worse] or list(eligible)
        if alive:
            self._judge(alive)

    def _judge(self, alive: list[Settings]) -> None:
        self.leader = leader = max(alive, key=lambda s: self.fit.effects[s])  # 1
        others = [s for s in alive if s != leader]
        reach = self._reach(self._alpha, len(others))
        for s in others:  # 2
            certain = 0.0 if self.fit.counts[s] >= LEAST_BLOCKS else SURPRISE
            if self._ahead(leader, s, -reach) > certain:
                self.worse.add(s)
        left = [s for s in others if s not in self.worse]
        preferred = sum(self.preference(s) < self.preference(leader) for s in left)
        reach = self._reach(self._alpha / 2, preferred)
        self.tied = {  # 3
            s for s in left if self.fit.counts[s] >= LEAST_BLOCKS and self._ahead(leader, s, reach) < self.margin
        }
        self.undecided = [s for s in left if s not in self.tied]
        self.winner = min([leader, *self.tied], key=self.preference)  # 4

    def _reach(self, alpha: float, judgements: int) -> float:
        """How many standard errors a one-sided bound lies away."""
        return student(1 - 2 * alpha / max(1, judgements), self.fit.degrees)

    def _ahead(self, one: Settings, other: Settings, reach: float) -> float:
        return self.fit.difference(one, other) + reach * self.fit.standard_error(one, other)

    def contenders(self) -> list[Settings]:
        """Decision 6, the most urgent first: what would win by a tie, then what may be best."""
        if self.winner is None:
            return []
        winner = self.winner

        def urgency(s: Settings) -> tuple[bool, tuple[float, ...]]:
            may_tie = self._is_preferred(s) and self.fit.difference(winner, s) < self.margin
            return not may_tie, self.preference(s) if may_tie else (-self._most(s),)

        return sorted((s for s in self.undecided if self._matters(s)), key=urgency)

    def _matters(self, settings: Settings) -> bool:
        return (
            self._is_preferred(settings)
            or self._most(settings) > self.margin
            or self.fit.counts[settings] < LEAST_BLOCKS
            or settings == self.default
        )

    def _is_preferred(self, settings: Settings) -> bool:
        assert self.winner is not None
        return self.preference(settings) < self.preference(self.winner)

    def _most(self, settings: Settings) -> float:
        """How much better than the winner these settings may be, at most (decision 5)."""
        assert self.winner is not None
        return self._ahead(settings, self.winner, self._reach(self._alpha / 2, 1))

    def hasty(self) -> list[Settings]:
        """The winner, as long as a single block speaks for it, and the default, as long as one speaks against it."""
        both = [s for s in (self.winner, self.default) if s in self.eligible]
        return [s for s in dict.fromkeys(both) if s is not None and self.fit.counts[s] < LEAST_BLOCKS]

    def connecting(self) -> list[Settings]:
        """Who runs in every round, so that rounds can be compared."""
        return [s for s in dict.fromkeys((self.leader, self.winner)) if s is not None]

    def promising(self, count: int) -> list[Settings]:
        """The settings with the highest effects that are not out."""
        return sorted((s for s in self.eligible if s not in self.worse), key=lambda s: -self.fit.effects[s])[:count]

    def promise(self, neighbours: Iterable[Settings], ruled_out: Container[Settings]) -> float:
        """What settings may be worth, by those of their neighbours that were measured: the mean of the best PROMISING.

        Not of all, since what lies before an edge has neighbours behind it. What was ruled out is as bad as the worst.
        """
        worst = min(self.fit.effects.values())
        known = [
            worst if s in ruled_out else self.fit.effects[s]
            for s in neighbours
            if s in ruled_out or s in self.fit.effects
        ]
        return fmean(sorted(known)[-PROMISING:]) if known else -math.inf

    def fate(self, settings: Settings) -> FateName:
        """Of settings that were measured."""
        if settings == self.winner:
            return "winner"
        if settings not in self.eligible:
            return "ruled out"
        if settings in self.worse:  # by an earlier look; what came later may have shaken it
            return "worse" if self.leader and self.fit.difference(self.leader, settings) > 0 else "undecided"
        if settings == self.leader or settings in self.tied:
            return "tied"
        return "undecided" if self._matters(settings) else "no better"

    def share(self, settings: Settings, beside: Settings) -> tuple[float, tuple[float, float]]:
        """The change from `beside`, as a share, and the 95 % interval of this one change."""
        difference = self.fit.difference(settings, beside)
        reach = student(LEVEL, self.fit.degrees) * self.fit.standard_error(settings, beside)
        return math.expm1(difference), (math.expm1(difference - reach), math.expm1(difference + reach))
