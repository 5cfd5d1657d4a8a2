"""Effects of settings from rounds that drift, come and go, and are disturbed."""

from __future__ import annotations

import random
from statistics import NormalDist

import pytest

from bench.statistics.additive import Observation, fit

TRUTH = {"a": 0.0, "b": -0.05, "c": -0.10, "d": 0.03}


def observed(seed: int, noise: float, rounds: int = 8) -> list[Observation[str]]:
    """Three of the four settings a round, each round on a level of its own."""
    rng = random.Random(seed)
    found = []
    for number in range(rounds):
        level = rng.gauss(0, 0.05)
        for setting in rng.sample(sorted(TRUTH), 3):
            found.append(Observation(setting, number, TRUTH[setting] + level + rng.gauss(0, noise)))
    return found


def test_without_noise_rounds_that_drift_give_the_true_differences() -> None:
    fitted = fit(observed(1, 0.0))
    assert fitted.difference("d", "c") == pytest.approx(0.13, abs=0.003)
    assert fitted.standard_error("a", "a") == 0.0


def test_a_disturbed_block_moves_nothing() -> None:
    calm = observed(1, 0.01)
    disturbed = [calm[0]._replace(score=calm[0].score - 0.30), *calm[1:]]
    setting = calm[0].setting
    other = next(one for one in TRUTH if one != setting)
    assert fit(disturbed).difference(setting, other) == pytest.approx(fit(calm).difference(setting, other), abs=0.01)


def test_of_two_blocks_that_disagree_the_faster_one_is_believed() -> None:
    lines = [Observation(one, number, TRUTH[one]) for number in range(6) for one in ("a", "b", "c")]
    lines += [Observation("d", 2, 0.03), Observation("d", 4, 0.03 - 0.30)]
    assert fit(lines).difference("d", "a") == pytest.approx(0.03, abs=0.01)


def test_standard_errors_are_those_of_repetition() -> None:
    reach = NormalDist().inv_cdf(0.975)
    covered = 0
    for seed in range(200):
        fitted = fit(observed(seed, 0.02, rounds=20))
        covered += abs(fitted.difference("d", "c") - 0.13) <= reach * fitted.standard_error("d", "c")
    assert 175 <= covered <= 200


def test_few_blocks_are_not_believed_to_be_quiet() -> None:
    assert fit(observed(1, 0.0, rounds=2)).deviation > 0.01
