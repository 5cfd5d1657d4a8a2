"""Drawings are honest: bars from zero, intervals drawn, open bounds open, what is off the scale told so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report.charts import axis, bar, point
from bench.report.plot import Point, plot
from bench.report.scale import Scale
from bench.running.summary import Estimate

VALUES = st.lists(st.floats(min_value=0.001, max_value=1e7), min_size=1, max_size=8)


@given(VALUES)
def test_a_bars_scale_begins_at_zero_and_holds_every_value(values: list[float]) -> None:
    scale = Scale.from_zero(values)
    assert scale.low == scale.ticks[0] == 0.0
    assert all(scale.holds(value) for value in values)
    assert 2 <= len(scale.ticks) <= 6


@given(st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=8))
def test_a_points_scale_holds_every_value(values: list[float]) -> None:
    scale = Scale.around(values)
    assert all(scale.low - 1e-6 <= value <= scale.high + 1e-6 for value in values)
    assert 2 <= len(scale.ticks) <= 8


@given(VALUES)
def test_the_ticks_of_an_axis_all_read_differently(values: list[float]) -> None:
    drawn = axis(Scale.from_zero(values))
    labels = [part.partition("</text>")[0].rpartition(">")[2] for part in drawn.split("<text")[1:]]
    assert len(set(labels)) == len(labels)


def test_small_differences_do_not_fill_the_whole_scale() -> None:
    scale = Scale.around([5.30, 5.31])
    assert scale.high - scale.low > 0.5


def test_a_bar_is_as_long_as_its_value() -> None:
    scale = Scale(0.0, 10.0, (0.0, 10.0))
    assert 'width="25.00%"' in bar(Estimate(2.5, 2.0, 3.0), scale)


@pytest.mark.parametrize(("low", "high", "count"), [(2.0, 3.0, 0), (2.0, None, 1), (None, 3.0, 1), (None, None, 0)])
def test_a_bound_that_the_data_did_not_set_is_drawn_open(low: float | None, high: float | None, count: int) -> None:
    drawn = bar(Estimate(2.5, low, high), Scale(0.0, 10.0, (0.0, 10.0)))
    assert drawn.count("over open") == count


def test_a_point_off_the_scale_is_an_arrow_at_its_edge() -> None:
    drawn = point(Estimate(-60.0, -65.0, -55.0), Scale(-30.0, 10.0, (-30.0, 10.0)))
    assert "◀" in drawn
    assert "<circle" not in drawn


def runs(*changes: str, is_valid: bool = True) -> list[Point]:
    return [Point(Estimate(5.0 + i, 4.9 + i, 5.1 + i), is_valid, "1", "01-01", c, "t") for i, c in enumerate(changes)]


def test_a_history_joins_runs_of_the_same_load_and_settings_only() -> None:
    assert plot(runs("", "", ""), "u").count('"joint"') == 2
    assert plot(runs("", "N_CTX", ""), "u").count('"joint"') == 1
    assert plot([*runs(""), *runs("", is_valid=False)], "u").count('"joint"') == 0


def test_a_history_says_where_its_axis_begins() -> None:
    assert "the axis begins at" in plot(runs("", ""), "u")


def test_an_invalid_run_has_another_shape() -> None:
    assert "✕" in plot(runs("", is_valid=False), "u")
