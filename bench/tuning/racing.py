"""The tuner: a race of settings in interleaved rounds, which asks for blocks and is told what they showed. Pure.

    race = Race(plan)
    while race.outcome is None:
        race.tell(measure(race.wanted[0]))

The race measures nothing itself and knows no clock: it wants settings in an order, one block each, and each block's
result brings its cost in seconds. Its whole state follows from the plan and the blocks it was told, so an interrupted
race is resumed by telling a new one the recorded blocks (`Race.resumed`), and a simulated one is the same code.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

from bench.statistics.additive import Observation, fit
from bench.statistics.comparison import is_surely_higher
from bench.tuning.judgement import LEAST_BLOCKS, Judgement
from bench.tuning.objective import Figures, score
from bench.tuning.outcome import Block, Fate, Outcome, Plan, Stopped
from bench.tuning.space import Settings, preference

ALPHA = 0.05
ROUND = 8  # settings: with a block's 26 s three and a half minutes, within which drift is small
FRESH = 6  # of them at most so many that were not visited yet
LEADERS = 2  # whose neighbours are visited: of two settings, since the better one may only have been lucky
EXPLORING = 0.8  # of the budget: the rest goes to those who may have won
CUT_OFF = 2.0  # times the fastest block: a load from an SD card instead of the page cache stays below
CUT_OFF_LEAST_S = 10.0  # shorter blocks may well take twice as long for no reason, and cost little
ATTEMPTS = 3


class Race:
    """One race; see the module.

    1. The first round: the default, and the middle and the corners of what needs no restart.
    2. Between rounds the data are judged (`Judgement`). The next round: leader and winner; up to FRESH neighbours, not
       visited yet, of the LEADERS best, until EXPLORING of the budget is spent; and the contenders. The last one has
       no more settings than there is room for: a round that ends before its leader was measured compares nothing.
    3. Neither neighbours nor contenders, and the blocks of winner and default alone show the same: sure. What was not
       visited is taken to be no better than what lies between it and the leaders: a peak that rises alone among bad
       neighbours is not found.
    """

    def __init__(self, plan: Plan) -> None:
        """Raises: ValueError when the default is not one of the space's settings."""
        if plan.default not in plan.space:
            raise ValueError(f"the default {plan.default} is not in the space")
        self.plan = plan
        self.outcome: Outcome | None = None
        self.wanted: deque[Settings] = deque()
        self.costs_s: list[float] = []
        self._candidates = frozenset(s for s in plan.space.settings if plan.limits.admits(s))
        self._blocks: dict[Settings, list[Figures]] = {}
        self._observations: list[Observation[Settings]] = []
        self._invalid: dict[Settings, int] = {}
        self._ruled_out: dict[Settings, str] = {}
        self._not_measured: dict[Settings, str] = {}
        self._worse: set[Settings] = set()
        self._judged: Judgement | None = None
        self._fastest_s: dict[object, float] = {}
        self._spent_share = 0.0
        self._round = 0
        self._group = plan.space.group(plan.default)
        starts = (s for s in plan.space.starts(plan.default) if s in self._candidates)
        self._begin(list(dict.fromkeys((plan.default, *starts))), in_order=2)

    @classmethod
    def resumed(cls, plan: Plan, blocks: Iterable[Block]) -> Race:
        """A race that has been told these blocks, in the order in which another with the same plan was."""
        race = cls(plan)
        for block in blocks:
            race.tell(block)
        return race

    @property
    def cost_s(self) -> float:
        return sum(self.costs_s)

    @property
    def left_s(self) -> float:
        """How long it may still take, at most."""
        left_s = max(0.0, self.plan.budget_s - self.cost_s)
        return min(left_s, self._room * median(self.costs_s)) if self.costs_s else left_s

    @property
    def most_s(self) -> float | None:
        """How long the next block may take before it is to be ended as "failed"; None: as long as it does.

        CUT_OFF times the fastest block that had as much to do, so slow settings do not eat the budget. Never the
        default, which others are to beat by what they do.
        """
        settings = self.wanted[0]
        fastest_s = self._fastest_s.get(self.plan.space.group(settings))
        if fastest_s is None or settings == self.plan.default:
            return None
        return max(CUT_OFF * fastest_s, CUT_OFF_LEAST_S)

    @property
    def best_so_far(self) -> Settings | None:
        """As judged after the last full round; nothing is sure of it yet."""
        return self._judged.winner if self._judged else None

    def tell(self, block: Block) -> None:
        """Take the result of a wanted block.

        1. An invalid block is wanted again at the end of the round, ATTEMPTS times in all. Who has none that counts by
           then is not measured in this race; but the default, to which all is compared, is wanted again in each round.
        2. Settings that the engine cannot run, or that break a limit for good, are out.
        3. No room in the budget for another block: the race ends. The round is over: the next one, or the end.
        Raises: ValueError for a block that was not wanted, and after the end.
        """
        if block.settings not in self.wanted:
            raise ValueError(f"a block of {block.settings} was not wanted")
        self.wanted.remove(block.settings)
        self.costs_s.append(block.cost_s)
        self._group = self.plan.space.group(block.settings)
        if block.status == "invalid":
            self._take_invalid(block)
        elif block.status == "failed" or block.figures is None:
            self._ruled_out[block.settings] = block.reason
        else:
            self._fastest_s[self._group] = min(block.cost_s, self._fastest_s.get(self._group, block.cost_s))
            self._take_figures(block.settings, block.figures)
        if not self._room:
            self._end("budget", self._judge())
        elif not self.wanted:
            self._turn()

    @property
    def _room(self) -> int:
        """For so many blocks there is budget left."""
        by_time = max(0, int((self.plan.budget_s - self.cost_s) / max(median(self.costs_s), 1e-3)))
        return by_time if self.plan.most_blocks is None else min(by_time, self.plan.most_blocks - len(self.costs_s))

    @property
    def _share_of_budget(self) -> float:
        by_number = len(self.costs_s) / self.plan.most_blocks if self.plan.most_blocks else 0.0
        return min(1.0, max(by_number, self.cost_s / self.plan.budget_s))

    def _take_invalid(self, block: Block) -> None:
        self._invalid[block.settings] = self._invalid.get(block.settings, 0) + 1
        if self._invalid[block.settings] < ATTEMPTS:
            self.wanted.append(block.settings)
        elif block.settings not in self._blocks:
            self._not_measured[block.settings] = block.reason

    def _take_figures(self, settings: Settings, figures: Figures) -> None:
        of = self._blocks.setdefault(settings, [])
        of.append(figures)
        self._observations.append(Observation(settings, self._round, score(figures, self.plan.objective)))
        broken = self.plan.limits.broken_by(of)
        if broken:
            self._ruled_out[settings] = broken

    def _turn(self) -> None:
        """Decisions 2 and 3 of the race."""
        judged, default = self._judge(), self.plan.default
        fresh = self._fresh(judged)
        contenders = [*judged.contenders(), *self._unsettled(), *judged.hasty()] if judged else []
        owed = [] if default in self._blocks or default in self._ruled_out else [default]
        if not fresh and not contenders and not owed:
            if judged and self._is_unproven(judged):
                self._begin([judged.winner or default, default])
            else:
                self._end("sure", judged)
            return
        connecting = judged.connecting() if judged else []
        if contenders and self._share_of_budget > EXPLORING:
            fresh = []
        self._begin(list(dict.fromkeys((*connecting, *owed, *fresh[:FRESH], *contenders)))[: min(ROUND, self._room)])

    def _judge(self) -> Judgement | None:
        """A look at the data, which costs its part of ALPHA; None while there are none."""
        if not self._observations:
            return None
        share = self._share_of_budget
        alpha, self._spent_share = ALPHA * (share - self._spent_share), share
        memory_mib = {s: median(figures.memory_mib for figures in of) for s, of in self._blocks.items()}
        self._judged = Judgement(
            fit(self._observations),
            [s for s, of in self._blocks.items() if self._is_eligible(s, of)],
            self._worse,
            alpha,
            self.plan.margin,
            self.plan.default,
            lambda settings: preference(settings, memory_mib),
        )
        self._worse |= self._judged.worse
        return self._judged

    def _is_unproven(self, judged: Judgement) -> bool:
        """Whether the blocks of winner and default alone do not show what is said of the default, that it is worse.

        The fit's noise rests on a prior, and some machines are noisier than any prior.
        """
        winner, default = judged.winner, self.plan.default
        if winner is None or default not in self._blocks or judged.fate(default) != "worse":
            return False
        is_ahead = judged.fit.difference(winner, default) > 0
        return not (is_ahead and is_surely_higher(self._scores(winner), self._scores(default)))

    def _scores(self, settings: Settings) -> list[float]:
        return [score(figures, self.plan.objective) for figures in self._blocks[settings]]

    def _is_eligible(self, settings: Settings, blocks: Sequence[Figures]) -> bool:
        is_in = settings in self._candidates and settings not in self._ruled_out
        return is_in and self.plan.limits.are_met_by(blocks)

    def _unsettled(self) -> list[Settings]:
        """Those whose only block missed a limit by so little that another one may meet it."""
        alive = (s for s in self._blocks if s in self._candidates and s not in self._ruled_out)
        return [s for s in alive if self.plan.limits.may_yet_be_met_by(self._blocks[s])]

    def _fresh(self, judged: Judgement | None) -> list[Settings]:
        """Candidates not visited yet, the most promising first. Without a leader, all.

        A restart's neighbours come first, as soon as the leader is no single block's luck: what they change is large,
        and all that is visited in the wrong group is visited in vain.
        """
        space, seen = self.plan.space, {*self._blocks, *self._ruled_out, *self._not_measured}
        if judged is None or judged.leader is None:
            return [s for s in space.settings if s in self._candidates and s not in seen]
        beside = dict.fromkeys(s for best in judged.promising(LEADERS) for s in space.neighbours(best))
        near = [s for s in beside if s in self._candidates and s not in seen]
        near.sort(key=lambda s: -judged.promise(space.neighbours(s), self._ruled_out))
        home = space.group(judged.leader)
        inside = [s for s in near if space.group(s) == home]
        across = [s for s in near if space.group(s) != home]
        if judged.fit.counts[judged.leader] < LEAST_BLOCKS:
            return inside or across
        return across + inside

    def _begin(self, settings: Sequence[Settings], in_order: int = 0) -> None:
        """A round: chance decides the order, within what one restart serves; but not that of the first `in_order`.

        What the very first block takes is what later ones are cut off by, so it is the default's.
        """
        self._round += 1
        self._invalid.clear()
        rng = random.Random(f"{self.plan.seed}/{self._round}")
        group = self.plan.space.group
        groups = sorted({group(s) for s in settings}, key=str)
        rng.shuffle(groups)
        groups.sort(key=lambda one: one != self._group)
        for one in groups:
            members = [s for s in settings if group(s) == one]
            rng.shuffle(members)
            members.sort(key=lambda s: (*settings[:in_order], s).index(s))
            self.wanted.extend(members)

    def _end(self, stopped: Stopped, judged: Judgement | None) -> None:
        self.wanted.clear()
        default, winner = self.plan.default, judged.winner if judged else None
        fates = {s: self._fate(s, judged) for s in self.plan.space.settings}
        gain, ci95, is_better = None, None, False
        if judged and winner:
            is_better = winner != default and fates[default].name in ("worse", "tied", "ruled out")
            is_better = is_better and not self._is_unproven(judged)
            if default in self._blocks:
                gain, ci95 = judged.share(winner, default)
        self.outcome = Outcome(
            stopped=stopped if winner or stopped == "budget" else "no candidates",
            winner=fates[winner] if winner else None,
            default=fates[default],
            gain=gain,
            gain_ci95=ci95,
            is_better=is_better,
            fates=tuple(fate for settings, fate in fates.items() if settings in self._candidates),
            blocks=len(self.costs_s),
            cost_s=self.cost_s,
            grid=len(self._candidates),
        )

    def _fate(self, settings: Settings, judged: Judgement | None) -> Fate:
        blocks = self._blocks.get(settings, [])
        if not blocks or judged is None:
            return self._fate_without_figures(settings)
        if judged.winner is None:
            return Fate(settings, "ruled out", len(blocks), _medians(blocks), reason=self._reason(settings))
        change, ci95 = judged.share(settings, judged.winner)
        name = judged.fate(settings)
        reason = self._reason(settings) if name == "ruled out" else ""
        return Fate(settings, name, len(blocks), _medians(blocks), change, ci95, reason)

    def _fate_without_figures(self, settings: Settings) -> Fate:
        if settings in self._ruled_out:
            return Fate(settings, "ruled out", reason=self._ruled_out[settings])
        if settings in self._not_measured:
            return Fate(settings, "not measured", reason=self._not_measured[settings])
        return Fate(settings, "not visited")

    def _reason(self, settings: Settings) -> str:
        """Why settings with blocks are ruled out."""
        if settings not in self._candidates:
            return "its context is smaller than asked for"
        return self._ruled_out.get(settings, "its median TTFT is above the limit")


def _medians(blocks: Sequence[Figures]) -> Figures:
    return Figures(
        median(figures.decode_tokens_per_s for figures in blocks),
        median(figures.ttft_ms for figures in blocks),
        median(figures.tpot_ms for figures in blocks),
        median(figures.memory_mib for figures in blocks),
    )
