"""A race in data: what is raced for, what a block showed, and how the race ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.tuning.judgement import FateName
from bench.tuning.objective import Figures, Limits, Objective
from bench.tuning.space import Settings, Space

MARGIN = 0.02
# Where no budget is asked for: 40 % of what it takes to measure every setting twice, which is about what an exhaustive
# search needs itself (docs/tuning.md), and not much longer than that is on a node of which half the settings are slow.
USUAL_SHARE, USUAL_LEAST_BLOCKS, USUAL_S = 0.4, 24, 1800.0

Status = Literal["measured", "invalid", "failed"]
Stopped = Literal["sure", "budget", "no candidates"]


@dataclass(frozen=True)
class Block:
    """What became of one block.

    status: "measured"; "invalid": it does not count (throttled, other requests, …) and is asked for again; "failed":
      the engine cannot run with these settings.
    cost_s: all that it took, with load, restart and warm-up. reason: why not "measured".
    """

    settings: Settings
    status: Status
    cost_s: float
    figures: Figures | None = None
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What is raced for.

    default: the settings to be better than, one of the space's; measured even where the limits do not admit them.
    budget_s: of the blocks' costs together. most_blocks: another end, by number.
    margin: a share; who uses a node does not care for less. seed: of the order within rounds.
    """

    space: Space
    default: Settings
    objective: Objective = "throughput"
    limits: Limits = field(default_factory=Limits)
    budget_s: float = USUAL_S
    most_blocks: int | None = None
    margin: float = MARGIN
    seed: int = 0


@dataclass(frozen=True)
class Fate:
    """What became of one setting.

    name: winner. tied: shown to lie within the margin of the best. worse: surely worse than the best. no better: shown
      not to beat the winner by the margin, and the winner is preferred. undecided: the budget ended first. ruled out:
      by a limit, or the engine failed. not measured: no valid block. not visited: the race never came near.
    figures: medians of its blocks.
    change, ci95: of the objective's figure beside the winner's, as a share, less than 0 is worse. The interval is one
      setting's alone; decisions rest on wider ones (see `Judgement`).
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
    """How a race ended.

    stopped: "sure": nothing that still matters is undecided. "budget": it was spent first; the winner is the best so
      far. "no candidates": no setting could be measured within the limits.
    gain, gain_ci95: the winner's beside the default, as shares. Flattered, since the same blocks chose the winner: only
      `bench verify`, which measures both anew, gives the figure to believe.
    is_better: the default is surely worse, by the blocks of the two alone as well; or lost a tie to preferred settings,
      or is not allowed.
    fates: of every candidate, in the space's order. grid: how many there are.
    """

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


def usual_blocks(settings: int) -> int:
    """The blocks of a race of so many settings for which nobody named a budget."""
    return max(USUAL_LEAST_BLOCKS, int(USUAL_SHARE * 2 * settings))
