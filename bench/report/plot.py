"""Drawing a node's history: runs side by side, what changed between them, which do not count. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.report.charts import tick_label
from bench.report.markup import Markup, element, joined
from bench.report.scale import Scale
from bench.running.run_table import number
from bench.running.summary import Estimate

HISTORY_PX, TOP_PX, BOTTOM_PX = 190, 14, 160


@dataclass(frozen=True)
class Point:
    """One run in a history. group: points of one group compare, and are joined; label: under the axis."""

    estimate: Estimate
    is_valid: bool
    group: str
    label: str
    changes: str
    title: str


def plot(points: Sequence[Point], unit: str) -> Markup:
    """Runs from the oldest to the newest, at equal distances; a dashed line stands where settings changed."""
    known = [v for p in points for v in (p.estimate.value, p.estimate.low, p.estimate.high) if v is not None]
    scale = Scale.around(known)
    grid = [_row(tick, scale) for tick in scale.ticks]
    joints = [
        element("line", class_="joint", x1=_x(i, points), x2=_x(i + 1, points), y1=_y(a.estimate.value, scale),
                y2=_y(b.estimate.value, scale))
        for i, (a, b) in enumerate(pairwise(points))
        if a.group == b.group and a.is_valid and b.is_valid and not b.changes
    ]  # fmt: skip
    changes = [
        element("line", class_="change", x1=_x(i - 0.5, points), x2=_x(i - 0.5, points), y1=0, y2=BOTTOM_PX)
        for i, p in enumerate(points)
        if p.changes
    ]
    dots = [_run(i, p, points, scale) for i, p in enumerate(points)]
    labels = [
        element("text", points[i].label, x=_x(i, points), y=178, text_anchor="middle") for i in _labelled(len(points))
    ]
    values = [p.estimate.value for p in points]
    told = f"{unit}: {len(points)} runs, from {number(values[0])} to {number(values[-1])}; the table below has them all"
    drawn = element("svg", *grid, *changes, *joints, *dots, *labels, class_="plot",
                    height=HISTORY_PX, width="100%", role="img", aria_label=told)  # fmt: skip
    ticks = [
        element("text", tick_label(t, scale), x="100%", y=_y(t, scale) + 4, text_anchor="end") for t in scale.ticks
    ]
    side = element("svg", *ticks, class_="side", height=HISTORY_PX, width="3.5rem", aria_hidden="true")
    begins = "" if scale.low == 0 else f"; the axis begins at {number(scale.low)}"
    return joined(element("div", side, drawn, class_="history"),
                  element("p", f"{unit}{begins}", class_="note"))  # fmt: skip


def _run(i: int, p: Point, points: Sequence[Point], scale: Scale) -> Markup:
    x, y = _x(i, points), _y(p.estimate.value, scale)
    low, high = (_y(v, scale) if v is not None else None for v in (p.estimate.low, p.estimate.high))
    whisker = element(
        "line", class_="whisker", x1=x, x2=x, y1=y if low is None else low, y2=y if high is None else high
    )
    if p.is_valid:
        shape = element("circle", element("title", p.title), class_="dot", cx=x, cy=y, r=5)
    else:
        shape = element("text", element("title", p.title), "✕", class_="invalid", x=x, y=y + 5, text_anchor="middle")
    return joined(whisker, shape)


def _row(tick: float, scale: Scale) -> Markup:
    return element("line", class_="grid", x1="0", x2="100%", y1=_y(tick, scale), y2=_y(tick, scale))


def _x(i: float, points: Sequence[Point]) -> str:
    return f"{100 * (i + 0.5) / len(points):.2f}%"


def _y(value: float, scale: Scale) -> float:
    return round(BOTTOM_PX - (BOTTOM_PX - TOP_PX) * scale.percent(value) / 100, 1)


def _labelled(count: int, most: int = 4) -> list[int]:
    """The first, the last and some between."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
