"""The sweep's next load, and where throughput stops growing."""

from __future__ import annotations

import pytest

from bench.running.saturation import Point, next_concurrency, saturation
from bench.running.summary import Estimate


def point(concurrency: int, tokens_per_s: float, spread: float = 0.02, failed: float = 0.0) -> Point:
    interval = Estimate(tokens_per_s, tokens_per_s * (1 - spread), tokens_per_s * (1 + spread))
    return Point(concurrency, interval, 100.0, failed)


def swept(rates: dict[int, float], limit: int = 64) -> list[Point]:
    points: list[Point] = []
    while (concurrency := next_concurrency(points, limit)) is not None:
        points.append(point(concurrency, rates[concurrency]))
    return points


def test_a_sweep_doubles_until_two_doublings_gave_nothing() -> None:
    points = swept({1: 10, 2: 18, 4: 30, 8: 30.5, 16: 30.2, 32: 99})
    assert [p.concurrency for p in points] == [1, 2, 4, 8, 16]


def test_the_limit_is_the_last_load() -> None:
    assert [p.concurrency for p in swept({1: 10, 2: 20, 4: 40, 6: 60}, limit=6)] == [1, 2, 4, 6]


def test_a_load_of_which_requests_fail_is_the_last() -> None:
    assert next_concurrency([point(1, 10), point(2, 20, failed=0.2)], 64) is None


def test_saturation_is_the_least_load_that_none_beats() -> None:
    found = saturation(swept({1: 10, 2: 18, 4: 30, 8: 30.5, 16: 30.2}))
    assert found is not None
    assert (found.concurrency, found.is_found) == (4, True)
    assert found.reason == "8 at once give +1.7%, which is less than 5% or within the noise"


def test_growth_within_the_noise_is_none() -> None:
    found = saturation([point(1, 10, 0.2), point(2, 11.5, 0.2), point(4, 11.9, 0.2)])
    assert found is not None
    assert found.concurrency == 1


def test_a_sweep_that_ended_while_it_grew_says_so() -> None:
    found = saturation(swept({1: 10, 2: 20, 4: 40}, limit=4))
    assert found is not None
    assert (found.concurrency, found.is_found) == (4, False)
    assert "still grew" in found.reason


def test_failing_ends_the_growth_too() -> None:
    found = saturation([point(1, 10), point(2, 20), point(4, 35, failed=0.4)])
    assert found is not None
    assert (found.concurrency, found.is_found) == (2, True)
    assert found.reason == "at 4 at once 40% of the requests fail"


@pytest.mark.parametrize("points", [[], [point(1, 0.0, failed=1.0)]])
def test_nothing_measured_has_no_saturation(points: list[Point]) -> None:
    assert saturation(points) is None
