"""How often comparisons and intervals are right, on simulated machines whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from statistics import NormalDist, median

from bench.statistics.comparison import LOOKS, Verdict, compare, first_arms, looks
from bench.statistics.intervals import mean_interval, quantile_interval
from bench.truth.rate import Rate
from bench.truth.surfaces import Machine, Noise
from bench.tuning.space import Settings

BUDGET_S = 1200.0
SERIES = 200  # requests of a run
CORRELATION, LATENCY_DEVIATION = 0.5, 0.2
OLD, NEW = Settings.of(N_CTX=512, N_THREADS=4, N_BATCH=512), Settings.of(N_CTX=512, N_THREADS=4, N_BATCH=128)


def compared(change: float, noise: Noise, rng: random.Random, rounds: Sequence[int] = LOOKS) -> tuple[Verdict, float]:
    """One comparison on one machine, looked at as planned, its seconds; a round with an invalid block is repeated."""
    machine = Machine(lambda settings: 1 + change if settings == NEW else 1.0, noise, rng)
    plan, old, new = looks(rounds), list[float](), list[float]()
    for first in first_arms(rounds[-1], rng):
        while (figures := _round_of(machine, (OLD, NEW) if first == 0 else (NEW, OLD))) is None:
            pass
        old.append(figures[OLD])
        new.append(figures[NEW])
        verdict = compare(old, new, plan=plan) if len(old) in rounds else None
        if verdict and verdict.is_final:
            return verdict, machine.now_s
    raise AssertionError("the last look is final")


def _round_of(machine: Machine, order: Iterable[Settings]) -> dict[Settings, float] | None:
    blocks = [machine.block(settings) for settings in order]
    if any(block.figures is None for block in blocks):
        return None
    return {block.settings: block.figures.decode_tokens_per_s for block in blocks if block.figures}


def comparison_rates(n: int, seed: int) -> Iterator[Rate]:
    for name, noise, most in (("", Noise(), 0.05), (", noise x 3", Noise().scaled(3), 0.05)):
        verdicts = [compared(0.0, noise, random.Random(f"{seed} same {k}"))[0] for k in range(n)]
        different = sum(verdict.kind != "same" for verdict in verdicts)
        yield Rate(f"A/A pairs called different{name}", different, n, most=most)
    naive = sum(_naive(random.Random(f"{seed} same {k}")) for k in range(n))
    yield Rate("the same, looking after every round at p < 0.05", naive, n, note="why the looks are planned")
    for change in (0.05, -0.05, 0.03):
        found = [compared(change, Noise(), random.Random(f"{seed} {change} {k}")) for k in range(n)]
        kind = "faster" if change > 0 else "slower"
        hits = sum(verdict.kind == kind and time_s <= BUDGET_S for verdict, time_s in found)
        note = f"median {median(v.n for v, _ in found):.0f} rounds, {median(t for _, t in found) / 60:.0f} min"
        name = f"a true change of {change:+.0%} found in {BUDGET_S / 60:.0f} min"
        yield Rate(name, hits, n, least=0.90 if abs(change) == 0.05 else None, note=note)


def _naive(rng: random.Random) -> bool:
    old, new = series(0.0, rng)
    return any((verdict := compare(old[:k], new[:k])) and verdict.kind != "same" for k in range(6, len(old) + 1))


def series(change: float, rng: random.Random) -> tuple[list[float], list[float]]:
    """All rounds of a comparison, old and new, whatever they show."""
    machine = Machine(lambda settings: 1 + change if settings == NEW else 1.0, Noise(invalid=0.0), rng)
    old, new = list[float](), list[float]()
    for first in first_arms(LOOKS[-1], rng):
        figures = _round_of(machine, (OLD, NEW) if first == 0 else (NEW, OLD))
        assert figures is not None
        old.append(figures[OLD])
        new.append(figures[NEW])
    return old, new


def coverage_rates(n: int, seed: int) -> Iterator[Rate]:
    for rounds in (12, LOOKS[-1]):
        hits = 0
        for k in range(n):
            old, new = series(0.05, random.Random(f"{seed} cover {k}"))
            verdict = compare(old[:rounds], new[:rounds])
            assert verdict is not None
            hits += verdict.ci95[0] <= 0.05 <= verdict.ci95[1]
        yield Rate(f"CI of a change covers it, {rounds} rounds", hits, n, 0.93, 0.97)
    latencies = [_latencies(random.Random(f"{seed} series {k}")) for k in range(n)]
    for share in (0.5, 0.9, 0.95):
        truth = _true_quantile(share)
        hits = sum(truth in quantile_interval(values, share) for values in latencies)
        yield Rate(f"CI of p{share * 100:.0f} covers it, {SERIES} requests", hits, n, 0.93, 0.97)
    logs = [[math.log(value) for value in values] for values in latencies]
    yield Rate(
        f"CI of a mean covers it, {SERIES} requests", sum(0.0 in mean_interval(of) for of in logs), n, 0.93, 0.97
    )


def _latencies(rng: random.Random) -> list[float]:
    """A series of latencies, log-normal, each like the one before: an AR(1) process of their logarithms."""
    log, values = rng.gauss(0, LATENCY_DEVIATION), []
    for _ in range(SERIES):
        values.append(math.exp(log))
        log = CORRELATION * log + math.sqrt(1 - CORRELATION**2) * rng.gauss(0, LATENCY_DEVIATION)
    return values


def _true_quantile(share: float) -> float:
    return math.exp(NormalDist(0, LATENCY_DEVIATION).inv_cdf(share))
