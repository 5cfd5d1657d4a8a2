"""How often the statistics are right: `make bench-truth` in small, with bounds that chance alone breaks once in 10,000.

Each hit rate is held against the target of the real run by a binomial test, so that another seed does not fail.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest

from bench.statistics.comparison import LOOKS, compare
from bench.statistics.intervals import binomial_below
from bench.truth import __main__ as truth
from bench.truth.comparison import compared, coverage_rates, series
from bench.truth.race import NEAR_ENOUGH, quality, raced
from bench.truth.rate import Rate
from bench.truth.surfaces import DEFAULT, LIVE_SPACE, SURFACES, Machine, Noise
from bench.tuning.outcome import USUAL_S, usual_blocks

CHANCE = 1e-4


def is_too_rare(hits: int, n: int, rate: float) -> bool:
    return binomial_below(hits, n, rate) < CHANCE


def is_too_often(hits: int, n: int, rate: float) -> bool:
    return 1 - binomial_below(hits - 1, n, rate) < CHANCE


def count(facts: Iterable[bool]) -> int:
    return sum(facts)


@pytest.mark.parametrize("scale", [1, 3])
def test_equal_arms_are_rarely_called_different(scale: float) -> None:
    kinds = [compared(0.0, Noise().scaled(scale), random.Random(k))[0].kind for k in range(200)]
    assert not is_too_often(count(kind != "same" for kind in kinds), len(kinds), 0.05)


def test_looking_after_every_round_would_call_many_different() -> None:
    found = 0
    for k in range(200):
        old, new = series(0.0, random.Random(k))
        looks = (compare(old[:rounds], new[:rounds]) for rounds in range(6, LOOKS[-1] + 1))
        found += any(verdict and verdict.kind != "same" for verdict in looks)
    assert is_too_often(found, 200, 0.05)


@pytest.mark.parametrize(("change", "kind"), [(0.05, "faster"), (-0.05, "slower")])
def test_five_percent_are_found_within_the_budget(change: float, kind: str) -> None:
    found = [compared(change, Noise(), random.Random(k)) for k in range(100)]
    hits = count(verdict.kind == kind and time_s <= 1200 for verdict, time_s in found)
    assert not is_too_rare(hits, len(found), 0.90)


def test_intervals_cover() -> None:
    for rate in coverage_rates(150, seed=3):
        assert not is_too_rare(rate.hits, rate.n, 0.93), rate.name
        assert not is_too_often(rate.hits, rate.n, 0.97), rate.name


@pytest.mark.parametrize("name", SURFACES)
def test_races_end_near_the_best_with_two_fifths_of_the_grids_blocks(name: str) -> None:
    near, n = 0, 40
    for k in range(n):
        rng = random.Random(k)
        surface = SURFACES[name](rng)
        outcome = raced(surface, rng, LIVE_SPACE, DEFAULT, USUAL_S, usual_blocks(len(LIVE_SPACE.settings)))
        assert outcome.winner is not None
        near += quality(surface, outcome.winner.settings, LIVE_SPACE) >= NEAR_ENOUGH
        assert outcome.blocks <= 0.4 * 2 * len(LIVE_SPACE.settings)
    assert not is_too_rare(near, n, 0.95)


def test_among_equals_hardly_any_race_calls_one_worse_however_often_it_looks() -> None:
    outcomes = [raced(lambda settings: 1.0, random.Random(k), LIVE_SPACE, DEFAULT, 3600, None) for k in range(30)]
    wrong = count(any(fate.name == "worse" for fate in outcome.fates) for outcome in outcomes)
    assert not is_too_often(wrong, len(outcomes), 0.05)


def test_a_simulated_block_costs_what_it_costs_on_a_pi() -> None:
    costs = [Machine(lambda settings: 1.0, Noise(), random.Random(k)).block(DEFAULT).cost_s for k in range(100)]
    assert 24 < sum(costs) / len(costs) < 28


def test_a_rate_says_whether_it_reached_its_target() -> None:
    assert not Rate("so often", 6, 100, most=0.05).is_reached
    assert Rate("so often", 94, 100, least=0.93, most=0.97).row() == (
        "| so often | 94.0% | 87.4%-97.8% | 100 | 93%-97% | yes |  |"
    )


def test_the_command_prints_the_rates_and_fails_when_one_is_missed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def questions(n: int, seed: int) -> Iterable[Rate]:
        yield Rate("a rate", 0, n, least=0.9)

    for name in ("comparison_rates", "coverage_rates", "race_rates"):
        monkeypatch.setattr(truth, name, questions)
    assert truth.main(["--comparisons", "10", "--races", "5", "--json"]) == 1
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [rate["n"] for rate in printed] == [10, 10, 5]
