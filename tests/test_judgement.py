"""What is promising of settings that were not visited yet."""

from __future__ import annotations

import math

import pytest

from bench.statistics.additive import Observation, fit
from bench.tuning.judgement import Judgement
from bench.tuning.space import Settings, preference

EVERY = [Settings.of(N_CTX=context) for context in range(6)]


def judged(speeds: list[float]) -> Judgement:
    """Of settings that were measured in three rounds, one block each."""
    pairs = list(zip(EVERY, speeds, strict=False))
    told = [Observation(s, number, math.log(speed)) for number in range(3) for s, speed in pairs]
    return Judgement(fit(told), EVERY[: len(speeds)], (), 0.05, 0.02, EVERY[0], lambda s: preference(s, {}))


def test_bad_neighbours_do_not_count_beside_three_good_ones_since_an_edge_may_lie_between() -> None:
    before_the_edge, on_a_slope = judged([5.0, 5.0, 5.0, 0.5, 0.5]), judged([5.0, 5.0, 4.0, 4.0, 4.0])
    assert before_the_edge.promise(EVERY, ()) == pytest.approx(before_the_edge.fit.effects[EVERY[0]])
    assert on_a_slope.promise(EVERY, ()) < on_a_slope.fit.effects[EVERY[0]]


def test_what_was_ruled_out_is_as_bad_as_the_worst_measured_or_not() -> None:
    found = judged([5.0, 4.0, 3.0])
    worst = found.fit.effects[EVERY[2]]
    assert found.promise([EVERY[5]], {EVERY[5]}) == pytest.approx(worst)
    assert found.promise([EVERY[0]], {EVERY[0]}) == pytest.approx(worst)
    assert found.promise([EVERY[0]], ()) > worst


def test_nothing_known_is_no_promise() -> None:
    assert judged([5.0, 4.0]).promise([EVERY[5]], ()) == -math.inf
