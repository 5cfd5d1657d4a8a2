"""The tuner: a race of settings in interleaved rounds, which asks for blocks and is told what they showed. Pure.

    race = Race(plan)
    while race.outcome is None:
        race.tell(measure(race.wanted[0]))

The race measures nothing itself and knows no clock: it wants settings in an order, one block each, and each block's
result brings its cost in seconds. Its whole state follows from the plan and the blocks it was told, so an interrupted
race is resumed by telling a new one the recorded blocks (`Race.resumed`).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.additive import Fit, Observation, fit
from bench.intervals import LEVEL, student
from bench.objective import Figures, Limits, Objective, score
from bench.space import Settings, Space, preference

ALPHA = 0.05
MARGIN = 0.02
ROUND = 8  # settings: with a block's 16 s two minutes, within which drift is small
LEAST_BLOCKS = 2
SURPRISE = 0.36  # log of of its speed; one block may lose so much to what else runs on the machine
ATTEMPTS = 3
FRESH = 5

Status = Literal["measured", "invalid", "failed"]
FateName = Literal["winner", "tied", "worse", "no better", "undecided", "ruled out", "not measured", "not visited"]
Stopped = Literal["sure", "budget", "no candidates"]


@dataclass(frozen=True)
class Block:
    """What became of one block.

    status: "measured"; "invalid": it does not count (throttled, other requests, …) and is asked for again; "failed": the
      engine cannot run with these settings.
    cost_s: all that it took, with load, restart and warm-up.
    """

    settings: Settings
    status: Status
    cost_s: float
    figures: Figures | None = None
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What is raced for.

    default: the settings to be better than; measured first. budget_s: of the blocks' costs together.
    margin: settings whose figures differ by less are equals for who uses them. seed: of the order within rounds.
    """

    space: Space
    default: Settings
    objective: Objective = "throughput"
    limits: Limits = Limits()
    budget_s: float = 1200.0
    margin: float = MARGIN
    seed: int = 0


@dataclass(frozen=True)
class Fate:
    """What became of one setting.

    winner. tied: shown to lie within the margin of the best. worse: surely worse than the best. no better: shown not
    to beat the winner by the margin, and the winner is preferred. undecided: the budget ended first. ruled out: by a
    limit, or the engine failed. not measured: no valid block. not visited: the race never came near.
    change, ci95: of the objective's figure beside the winner's, as a share, less than 0 is worse; this interval is one
    setting's alone, while the decisions rest on wider ones (see `_Look`).
    """

    settings: Settings
    name: FateName
    blocks: int = 0
    figures: Figures | None = None
    change: float | None = None
    ci95: tuple[float, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """gain, gain_ci95: of the winner beside the default, as shares; it is flattered, for the winner was chosen by the
    same blocks: `bench verify` measures both anew. is_better: surely better than the default, or the default itself lost
    a tie to preferred settings. grid: how many settings there were."""

    stopped: Stopped
    winner: Fate | None
    default: Fate
    gain: float | None
    gain_ci95: tuple[float, float] | None
    is_better: bool
    fates: tuple[Fate, ...]
    blocks: int
    cost_s: float
    grid: int


class Race:
    """One race; see the module."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcome: Outcome | None = None
        self.wanted: deque[Settings] = deque()
        self.cost_s = 0.0
        self._space = plan.space
        self._candidates = {s for s in plan.space.settings if plan.limits.admits(s)}
        self._blocks: dict[Settings, list[Figures]] = {}
        self._observations: list[Observation[Settings]] = []
        self._costs: list[float] = []
        self._invalid: dict[Settings, int] = {}
        self._ruled_out: dict[Settings, str] = {}
        self._worse: set[Settings] = set()
        self._given_up: dict[Settings, str] = {}
        self._round = 0
        self._spent_share = 0.0
        self._group = plan.space.group(plan.default)
        starts = [plan.default, *(s for s in plan.space.starts(plan.default) if s in self._candidates)]
        self._begin(list(dict.fromkeys(starts)))

    @classmethod
    def resumed(cls, plan: Plan, blocks: Iterable[Block]) -> Race:
        race = cls(plan)
        for block in blocks:
            race.tell(block)
        return race

    def tell(self, block: Block) -> None:
        """Take the result of one wanted block.

        1. An invalid block is wanted again at the end of the round, ATTEMPTS times in all; then not in this round.
        2. Settings that the engine cannot run, or that break a limit, are out.
        3. No room in the budget for another block: the race ends. The round is over: a look at the data, which ends
           the race or begins the next round.
        Raises: ValueError for a block that was not wanted, and after the end.
        """
        if self.outcome is not None or block.settings not in self.wanted:
            raise ValueError(f"a block of {block.settings} was not wanted")
        self.wanted.remove(block.settings)
        self.cost_s += block.cost_s
        self._costs.append(block.cost_s)
        self._group = self._space.group(block.settings)
        if block.status == "invalid":
            self._take_invalid(block)
        elif block.status == "failed":
            self._ruled_out[block.settings] = block.reason
        else:
            self._take_measured(block)
        if self.plan.budget_s - self.cost_s < median(self._costs):
            self._end("budget", self._look())
        elif not self.wanted:
            self._turn()

    def _take_invalid(self, block: Block) -> None:
        self._invalid[block.settings] = self._invalid.get(block.settings, 0) + 1
        if self._invalid[block.settings] < ATTEMPTS:
            self.wanted.append(block.settings)
        elif block.settings not in self._blocks:
            self._given_up[block.settings] = block.reason

    def _take_measured(self, block: Block) -> None:
        assert block.figures is not None
        of = self._blocks.setdefault(block.settings, [])
        of.append(block.figures)
        value = score(block.figures, self.plan.objective)
        self._observations.append(Observation(block.settings, self._round, value))
        reason = self.plan.limits.broken_by(of)
        if reason:
            self._ruled_out[block.settings] = reason

    def _begin(self, settings: Sequence[Settings]) -> None:
        """A round: chance decides the order, within what one restart serves."""
        self._round += 1
        self._invalid.clear()
        rng = random.Random(f"{self.plan.seed}/{self._round}")
        groups = sorted({self._space.group(s) for s in settings}, key=str)
        rng.shuffle(groups)
        groups.sort(key=lambda group: group != self._group)
        for group in groups:
            members = [s for s in settings if self._space.group(s) == group]
            rng.shuffle(members)
            self.wanted.extend(members)

    def _turn(self) -> None:
        """Between two rounds: end, or choose who runs next."""
        look = self._look()
        fresh = self._fresh(look)
        contenders = look.contenders() if look else []
        if not fresh and not contenders:
            self._end("sure" if look and look.winner else "no candidates", look)
            return
        chosen = [] if look is None else look.connecting()
        default = self.plan.default
        chosen += fresh[:FRESH]
        chosen += contenders
        unique = list(dict.fromkeys(chosen))
        self._begin(unique[:ROUND])

    def _fresh(self, look: _Look | None) -> list[Settings]:
        """Candidates that were not visited yet, beside the leaders; those without a restart first."""
        seen = {*self._blocks, *self._ruled_out, *self._given_up}
        near: dict[Settings, float] = {}
        if look is None or look.leader is None:
            return sorted(self._candidates - seen)
        for leader in look.leaders():
            for settings in self._space.neighbours(leader):
                if settings in self._candidates and settings not in seen:
                    near.setdefault(settings, look.promise(self._space.neighbours(settings)))
        home = self._space.group(look.leader)
        inside = [s for s in near if self._space.group(s) == home]
        return sorted(inside or near, key=lambda s: -near[s])

    def _look(self) -> _Look | None:
        if not self._observations:
            return None
        share = min(1.0, self.cost_s / self.plan.budget_s)
        alpha, self._spent_share = ALPHA * (share - self._spent_share), share
        eligible = [
            s
            for s in self._blocks
            if s in self._candidates and s not in self._ruled_out and self.plan.limits.are_met_by(self._blocks[s])
        ]
        memory = {s: median(f.memory_mib for f in of) for s, of in self._blocks.items()}
        look = _Look(fit(self._observations), eligible, frozenset(self._worse), alpha, self.plan, memory)
        self._worse |= look.worse
        return look

    def _end(self, stopped: Stopped, look: _Look | None) -> None:
        self.wanted.clear()
        winner = look.winner if look else None
        if winner is None:
            stopped = "no candidates" if stopped != "budget" else stopped
        fates = {s: self._fate(s, look) for s in dict.fromkeys([self.plan.default, *self._space.settings])}
        gain, ci95, is_better = None, None, False
        default = self.plan.default
        if look and winner and default in self._blocks:
            gain, ci95 = look.share(winner, default)
            is_better = winner != default and (
                default not in look.eligible or default in look.worse or default in look.tied
            )
        self.outcome = Outcome(
            stopped,
            fates[winner] if winner else None,
            fates[default],
            gain,
            ci95,
            is_better,
            tuple(fates[s] for s in self._space.settings if s in self._candidates),
            len(self._costs),
            self.cost_s,
            len(self._candidates),
        )

    def _fate(self, settings: Settings, look: _Look | None) -> Fate:
        blocks = self._blocks.get(settings, [])
        figures = _middle(blocks) if blocks else None
        reason = self._ruled_out.get(settings) or self._given_up.get(settings, "")
        if settings in self._ruled_out:
            return Fate(settings, "ruled out", len(blocks), figures, reason=reason)
        if not blocks or look is None:
            return Fate(settings, "not measured" if settings in self._given_up else "not visited", reason=reason)
        if look.winner is None:
            return Fate(settings, "undecided", len(blocks), figures)
        change, ci95 = look.share(settings, look.winner)
        return Fate(settings, look.fate(settings), len(blocks), figures, change, ci95)


def _middle(blocks: Sequence[Figures]) -> Figures:
    return Figures(
        median(f.decode_tokens_per_s for f in blocks),
        median(f.ttft_ms for f in blocks),
        median(f.tpot_ms for f in blocks),
        median(f.memory_mib for f in blocks),
    )


class _Look:
    """What the data say between two rounds.

    The race may end at any look, so the bounds must hold at all looks together. ALPHA is spent in proportion to the
    budget (Lan & DeMets 1983), and what a look may spend is divided by the settings it judges (Bonferroni): the looks
    need not be planned, and in 1 - ALPHA of all races no judgement "worse" is wrong of the best setting; likewise for
    "tied" and "no better" together.

    1. The leader is the eligible setting with the highest effect.
    2. Tied: the loss to the leader is surely less than the margin: an equivalence (Schuirmann 1987), not lack of data.
    3. Worse: the loss is surely more than 0. A single block must show a loss of more than SURPRISE for that.
    4. The winner is the preferred one among the leader and its ties.
    5. No better: an undecided setting that surely beats the winner by less than the margin, and is not preferred to it.
    6. Contenders are the undecided settings that still matter: preferred to the winner, perhaps better by the margin,
       with a single block, or the default, whose verdict decides whether a profile is written.
    """

    def __init__(
        self,
        fitted: Fit[Settings],
        eligible: list[Settings],
        worse: frozenset[Settings],
        alpha: float,
        plan: Plan,
        memory_mib: dict[Settings, float],
    ) -> None:
        self.fit, self.eligible, self.plan, self.memory_mib = fitted, eligible, plan, memory_mib
        self.worse, self.tied = set(worse), set()
        self.leader: Settings | None = None
        self.winner: Settings | None = None
        self.margin = -math.log1p(-plan.margin)
        alive = [s for s in eligible if s not in worse] or eligible
        if not alive:
            return
        self.leader = leader = max(alive, key=lambda s: fitted.effects[s])
        others = [s for s in alive if s != leader]
        reach = self._reach(alpha, len(others))
        for s in others:
            low = fitted.difference(leader, s) - reach * fitted.standard_error(leader, s)
            if low > (0 if fitted.counts[s] >= LEAST_BLOCKS else SURPRISE):
                self.worse.add(s)
        left = [s for s in others if s not in self.worse]
        self.reach = self._reach(alpha, len(left))
        for s in others:
            high = fitted.difference(leader, s) + self.reach * fitted.standard_error(leader, s)
            if fitted.counts[s] >= LEAST_BLOCKS and high < self.margin:
                self.tied.add(s)
        self.worse -= self.tied
        self.undecided = [s for s in left if s not in self.tied]
        self.winner = min([leader, *self.tied], key=self.preference)

    def _reach(self, alpha: float, judgements: int) -> float:
        """Standard errors of a one-sided bound."""
        return student(1 - 2 * max(alpha, 1e-6) / max(1, judgements), self.fit.degrees)

    def preference(self, settings: Settings) -> tuple[float, ...]:
        return preference(settings, self.memory_mib)

    def most(self, settings: Settings, beside: Settings) -> float:
        """The upper bound of how much better these settings are."""
        return self.fit.difference(settings, beside) + self.reach * self.fit.standard_error(settings, beside)

    def contenders(self) -> list[Settings]:
        if self.winner is None:
            return []
        return sorted((s for s in self.undecided if self.matters(s)), key=lambda s: -self.most(s, self.winner))

    def matters(self, settings: Settings) -> bool:
        assert self.winner is not None
        return (
            self.preference(settings) < self.preference(self.winner)
            or self.most(settings, self.winner) > self.margin
            or self.fit.counts[settings] < LEAST_BLOCKS
            or settings == self.plan.default
        )

    def connecting(self) -> list[Settings]:
        """Who runs in every round, so that rounds can be compared."""
        return [s for s in dict.fromkeys([self.leader, self.winner]) if s is not None]

    def leaders(self) -> list[Settings]:
        return sorted((s for s in self.eligible if s not in self.worse), key=lambda s: -self.fit.effects[s])[:2]

    def promise(self, neighbours: Iterable[Settings]) -> float:
        known = [self.fit.effects[s] for s in neighbours if s in self.fit.effects]
        return sum(known) / len(known) if known else -math.inf

    def fate(self, settings: Settings) -> FateName:
        if settings == self.winner:
            return "winner"
        if settings in self.worse:
            return "worse"
        if settings == self.leader or settings in self.tied:
            return "tied"
        return "undecided" if settings in self.undecided and self.matters(settings) else "no better"

    def share(self, settings: Settings, beside: Settings) -> tuple[float, tuple[float, float]]:
        """The change from `beside`, as a share, and its 95 % interval."""
        difference = self.fit.difference(settings, beside)
        reach = student(LEVEL, self.fit.degrees) * self.fit.standard_error(settings, beside)
        return math.expm1(difference), (math.expm1(difference - reach), math.expm1(difference + reach))
