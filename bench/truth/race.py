"""How often races are right, on simulated machines whose truth is known, and how often an exhaustive search is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from statistics import fmean, median

from bench.truth.rate import Rate
from bench.truth.surfaces import (
    DEFAULT,
    LIVE_SPACE,
    RESTART_DEFAULT,
    RESTART_SPACE,
    SURFACES,
    Machine,
    Noise,
    Surface,
    with_restarts,
)
from bench.tuning.outcome import MARGIN, USUAL_S, Outcome, Plan, usual_blocks
from bench.tuning.racing import CUT_OFF, Race
from bench.tuning.space import Settings, Space

SHORT_S, RESTART_BUDGET_S = 1200.0, 3600.0
NEAR_ENOUGH, TARGET = 0.97, 0.95
GRID_ROUNDS = 2


def raced(
    surface: Surface, rng: random.Random, space: Space, default: Settings, budget_s: float, most_blocks: int | None
) -> Outcome:
    """One race on one machine."""
    machine = Machine(surface, Noise(), rng)
    plan = Plan(space, default, budget_s=budget_s, most_blocks=most_blocks, seed=rng.randrange(2**32))
    race = Race(plan)
    while race.outcome is None:
        race.tell(machine.block(race.wanted[0], race.most_s))
    return race.outcome


def quality(surface: Surface, settings: Settings, space: Space) -> float:
    """The true speed of these settings, as a share of the best one's."""
    return surface(settings) / max(map(surface, space.settings))


def exhausted(surface: Surface, rng: random.Random, space: Space, rounds: int) -> Settings:
    """What an exhaustive search chooses: every setting `rounds` times, in random order, the highest median wins."""
    machine = Machine(surface, Noise(invalid=0.0), rng)
    speeds: dict[Settings, list[float]] = {settings: [] for settings in space.settings}
    fastest_s = math.inf
    for _ in range(rounds):
        for settings in rng.sample(space.settings, len(space.settings)):
            block = machine.block(settings, CUT_OFF * fastest_s)
            fastest_s = min(fastest_s, block.cost_s)
            speeds[settings].append(block.figures.decode_tokens_per_s if block.figures else 0.0)  # cut off
    return max(speeds, key=lambda settings: median(speeds[settings]))


def race_rates(n: int, seed: int) -> Iterator[Rate]:
    """Rates of exhaustive search; of races with the usual budget, which have targets; and of races with other budgets.

    The grid that races are held against measures every setting GRID_ROUNDS times, no more than exhaustive search needs
    to reach TARGET on every surface itself.
    """
    for rounds in range(1, GRID_ROUNDS + 1):
        for name in SURFACES:
            yield _exhaustive(name, n, seed, rounds)
    usual = usual_blocks(len(LIVE_SPACE.settings))
    for name, make in SURFACES.items():
        yield from _races(f"{name}, usual budget", make, n, seed, (LIVE_SPACE, DEFAULT), USUAL_S, usual)
    for name, make in SURFACES.items():
        yield from _races(f"{name}, 20 min", make, n, seed, (LIVE_SPACE, DEFAULT), SHORT_S)
    where = RESTART_SPACE, RESTART_DEFAULT
    yield from _races("with restarts, 60 min", with_restarts, n, seed, where, RESTART_BUDGET_S)


def _exhaustive(name: str, n: int, seed: int, rounds: int) -> Rate:
    hits = 0
    for k in range(n):
        rng = random.Random(f"{seed} {name} {k}")
        surface = SURFACES[name](rng)
        hits += quality(surface, exhausted(surface, rng, LIVE_SPACE, rounds), LIVE_SPACE) >= NEAR_ENOUGH
    blocks = rounds * len(LIVE_SPACE.settings)
    return Rate(f"exhaustive, {name}, {rounds} each: within 3 %", hits, n, note=f"{blocks} blocks")


def _races(
    name: str,
    make: Callable[[random.Random], Surface],
    n: int,
    seed: int,
    where: tuple[Space, Settings],
    budget_s: float,
    most_blocks: int | None = None,
) -> Iterator[Rate]:
    """Of n races: ended near the best; called the best worse; were sure and wrong; replaced a faster default."""
    space, default = where
    near = wrong = surely_wrong = sure = spoilt = 0
    blocks, visited, costs_s = list[int](), list[int](), list[float]()
    for k in range(n):
        rng = random.Random(f"{seed} {name} {k}")
        surface = make(rng)
        outcome = raced(surface, rng, space, default, budget_s, most_blocks)
        best = max(map(surface, space.settings))
        won = surface(outcome.winner.settings) / best if outcome.winner else 0.0
        near += won >= NEAR_ENOUGH
        is_sure = outcome.stopped == "sure"
        sure += is_sure
        surely_wrong += is_sure and won < 1 - MARGIN
        spoilt += outcome.is_better and won < (1 - MARGIN) * surface(default) / best
        wrong += any(fate.name == "worse" and surface(fate.settings) == best for fate in outcome.fates)
        blocks.append(outcome.blocks)
        visited.append(sum(fate.blocks > 0 for fate in outcome.fates))
        costs_s.append(outcome.cost_s)
    grid = GRID_ROUNDS * len(space.settings)
    note = (
        f"{fmean(blocks):.0f} blocks of the grid's {grid} ({fmean(blocks) / grid:.0%}), {fmean(visited):.0f} settings "
        f"visited, {fmean(costs_s) / 60:.0f} min"
    )
    yield Rate(f"race, {name}: within 3 %", near, n, least=TARGET if most_blocks else None, note=note)
    yield Rate(f"race, {name}: the best called worse", wrong, n, most=0.05)
    yield Rate(f"race, {name}: called better than the default, yet {MARGIN:.0%} slower", spoilt, n, most=0.05)
    note = f"{sure} were sure"
    yield Rate(f"race, {name}: sure, yet more than {MARGIN:.0%} off", surely_wrong, n, most=0.05, note=note)
