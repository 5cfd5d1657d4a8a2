"""How often races are right, on simulated machines whose truth is known, and how often an exhaustive search is."""

from __future__ import annotations

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
from bench.tuning.racing import MARGIN, Outcome, Plan, Race
from bench.tuning.space import Settings, Space

BUDGET_S, RESTART_BUDGET_S, UNLIMITED_S = 1200.0, 3600.0, 1e6
NEAR_ENOUGH, TARGET = 0.97, 0.95
SHARE_OF_GRID = 0.40
GRID_ROUNDS = 2


def raced(
    surface: Surface, rng: random.Random, space: Space, default: Settings, budget_s: float, most_blocks: int | None
) -> Outcome:
    """One race on one machine."""
    machine = Machine(surface, Noise(), rng)
    plan = Plan(space, default, budget_s=budget_s, most_blocks=most_blocks, seed=rng.randrange(2**32))
    race = Race(plan)
    while race.outcome is None:
        race.tell(machine.block(race.wanted[0]))
    return race.outcome


def quality(surface: Surface, settings: Settings, space: Space) -> float:
    """The true speed of these settings, as a share of the best one's."""
    return surface(settings) / max(map(surface, space.settings))


def exhausted(surface: Surface, rng: random.Random, space: Space, rounds: int) -> Settings:
    """What an exhaustive search chooses: every setting `rounds` times, in random order, the highest median wins."""
    machine = Machine(surface, Noise(invalid=0.0), rng)
    speeds: dict[Settings, list[float]] = {settings: [] for settings in space.settings}
    for _ in range(rounds):
        for settings in rng.sample(space.settings, len(space.settings)):
            figures = machine.block(settings).figures
            speeds[settings].append(figures.decode_tokens_per_s if figures else 0.0)  # cut off
    return max(speeds, key=lambda settings: median(speeds[settings]))


def race_rates(n: int, seed: int) -> Iterator[Rate]:
    """Rates of exhaustive search, then of races with the usual budget, then with SHARE_OF_GRID of the grid's blocks.

    The grid that races are held against measures every setting GRID_ROUNDS times, no more than exhaustive search needs
    to reach TARGET on every surface itself.
    """
    for rounds in range(1, GRID_ROUNDS + 1):
        for name in SURFACES:
            yield _exhaustive(name, n, seed, rounds)
    most = int(SHARE_OF_GRID * GRID_ROUNDS * len(LIVE_SPACE.settings))
    for name, make in SURFACES.items():
        yield from _races(name, make, n, seed, (LIVE_SPACE, DEFAULT), BUDGET_S, GRID_ROUNDS)
    for name, make in SURFACES.items():
        yield from _races(name, make, n, seed, (LIVE_SPACE, DEFAULT), UNLIMITED_S, GRID_ROUNDS, most)
    where = RESTART_SPACE, RESTART_DEFAULT
    yield from _races("with restarts", with_restarts, n, seed, where, RESTART_BUDGET_S, 1)


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
    grid_rounds: int,
    most_blocks: int | None = None,
) -> Iterator[Rate]:
    """Of n races: ended near the best; called the best worse; were sure and wrong."""
    space, default = where
    near = wrong = surely_wrong = sure = 0
    blocks, visited = list[int](), list[int]()
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
        wrong += any(fate.name == "worse" and surface(fate.settings) == best for fate in outcome.fates)
        blocks.append(outcome.blocks)
        visited.append(sum(fate.blocks > 0 for fate in outcome.fates))
    grid = grid_rounds * len(space.settings)
    share = fmean(blocks) / grid
    limit = f"{most_blocks} blocks" if most_blocks else f"{budget_s / 60:.0f} min"
    note = f"{fmean(blocks):.0f} blocks of the grid's {grid} ({share:.0%}), {fmean(visited):.0f} settings visited"
    yield Rate(f"race, {name}, {limit}: within 3 %", near, n, least=TARGET, note=note)
    yield Rate(f"race, {name}, {limit}: the best called worse", wrong, n, most=0.05)
    yield Rate(
        f"race, {name}, {limit}: sure, yet more than {MARGIN:.0%} off",
        surely_wrong,
        n,
        most=0.05,
        note=f"{sure} were sure",
    )
