"""Drawings for a report: strips within tables, and a node's history. Inline SVG in percent, so that they fit any width.

A drawing adds nothing that the numbers beside it do not say, so it is hidden from screen readers. Shapes differ as
colours do. Pure; must not know what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.markup import Markup, element, joined
from bench.run_table import number
from bench.summary import Estimate, Quantity

STRIP_PX, MIDDLE_PX, CAP_PX = 24, 12, 4
HISTORY_PX, TOP_PX, BOTTOM_PX = 190, 14, 160
NICE = (1, 2, 2.5, 5, 10)
MOST_TICKS = 5
LEAST = 1e-9


@dataclass(frozen=True)
class Scale:
    """From values to percent of the width (or height)."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def from_zero(cls, values: Iterable[float]) -> Scale:
        """For bars, whose length is the value."""
        most = max((v for v in values if math.isfinite(v)), default=1.0) or 1.0
        step, high = _step(0.0, most)
        return cls(0.0, max(most, high), tuple(step * i for i in range(round(high / step) + 1)))

    @classmethod
    def around(cls, values: Sequence[float]) -> Scale:
        """For points, whose place is the value; the axis need not begin at zero, and says where it begins."""
        known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
        low, high = min(known), max(known)
        size = max(abs(low), abs(high))
        if high - low <= max(0.02 * size, LEAST):  # or noise would look like a mountain range
            pad = 0.05 * size if size > LEAST else 0.5
            low, high = low - pad, high + pad
        step, _ = _step(low, high)
        first, last = math.floor(low / step), math.ceil(high / step)
        return cls(first * step, last * step, tuple(step * i for i in range(first, last + 1)))

    def percent(self, value: float) -> float:
        """Where it lies; outside values at the edge."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))

    def at(self, value: float) -> str:
        return f"{self.percent(value):.2f}%"

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def _step(low: float, high: float) -> tuple[float, float]:
    """A round distance of ticks, and the first tick at or above `high`."""
    raw = (high - low) / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * power for nice in NICE if nice * power >= raw * 0.999)
    return step, math.ceil(high / step - 1e-9) * step


def bar(estimate: Estimate, scale: Scale, kind: str = "") -> Markup:
    """A bar from zero, and its interval."""
    body = element("rect", class_=f"bar {kind}".strip(), x="0", y=6, height=12, width=scale.at(estimate.value), rx=2)
    return _strip(scale, body, _interval(estimate, scale, "over"))


def point(estimate: Estimate, scale: Scale, kind: str = "", mark: float | None = None) -> Markup:
    """A point and its interval; `mark`: a value to compare with. A point off the scale is an arrow at its edge."""
    line = None
    if mark is not None:
        line = element("line", class_="mark", x1=scale.at(mark), x2=scale.at(mark), y1=0, y2=STRIP_PX)
    return _strip(scale, line, _interval(estimate, scale), _dot(estimate.value, scale, kind))


def percentiles(quantity: Quantity, scale: Scale) -> Markup:
    """p50 with its interval, and how far the slow ones reach: a bar across is p95, an open circle p99."""
    p50, p95, p99 = quantity.p50, quantity.p95, quantity.p99
    return _strip(
        scale,
        element("line", class_="reach", x1=scale.at(p50.value), x2=scale.at(p99.value), y1=MIDDLE_PX, y2=MIDDLE_PX),
        element("line", class_="p95", x1=scale.at(p95.value), x2=scale.at(p95.value), y1=6, y2=18),
        element("circle", class_="p99", cx=scale.at(p99.value), cy=MIDDLE_PX, r=4),
        _interval(p50, scale),
        _dot(p50.value, scale, ""),
    )


def axis(scale: Scale, unit: str = "") -> Markup:
    """The ticks of a column of strips."""
    labels = [
        element(
            "text", f"{_tick(tick, scale)} {unit}".rstrip(), x=scale.at(tick), y=12, text_anchor=_anchor(tick, scale)
        )
        for tick in _sparse(scale.ticks)
    ]
    return element("svg", *labels, class_="axis", height=16, width="100%", aria_hidden="true")


@dataclass(frozen=True)
class Point:
    """One run in a history. group: points of one group compare, and are joined; label: under the axis."""

    estimate: Estimate
    is_valid: bool
    group: str
    label: str
    changes: str
    title: str


def history(points: Sequence[Point], unit: str) -> Markup:
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
    plot = element("svg", *grid, *changes, *joints, *dots, *labels, class_="plot", height=HISTORY_PX, width="100%")
    ticks = [element("text", _tick(t, scale), x="100%", y=_y(t, scale) + 4, text_anchor="end") for t in scale.ticks]
    side = element("svg", *ticks, class_="side", height=HISTORY_PX, width="3.5rem")
    begins = "" if scale.low == 0 else f"; the axis begins at {number(scale.low)}"
    return joined(element("div", side, plot, class_="history", aria_hidden="true"),
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


def _strip(scale: Scale, *drawn: Markup | None) -> Markup:
    grid = [element("line", class_="grid", x1=scale.at(t), x2=scale.at(t), y1=0, y2=STRIP_PX) for t in scale.ticks]
    return element("svg", *grid, *drawn, class_="strip", height=STRIP_PX, width="100%", aria_hidden="true")


def _interval(estimate: Estimate, scale: Scale, kind: str = "") -> Markup:
    """From low to high with caps; dashed to the edge, and without a cap, where the data set no bound."""
    known = [v for v in (estimate.low, estimate.high) if v is not None]
    if not known:
        return Markup("")
    y = MIDDLE_PX
    parts = []
    for bound, edge in ((estimate.low, scale.low), (estimate.high, scale.high)):
        is_open = bound is None
        to = edge if bound is None else bound
        parts.append(
            element("line", class_=f"whisker {kind} {'open' if is_open else ''}".rstrip(),
                    x1=scale.at(estimate.value), x2=scale.at(to), y1=y, y2=y)
        )  # fmt: skip
        if bound is not None and scale.holds(bound):
            parts.append(element("line", class_=f"whisker {kind}".rstrip(), x1=scale.at(bound), x2=scale.at(bound),
                                 y1=y - CAP_PX, y2=y + CAP_PX))  # fmt: skip
    return joined(*parts)


def _dot(value: float, scale: Scale, kind: str) -> Markup:
    if not scale.holds(value):
        is_left = value < scale.low
        sign, at, anchor = ("◀", "0", "start") if is_left else ("▶", "100%", "end")
        return element("text", sign, class_="off", x=at, y=MIDDLE_PX + 5, text_anchor=anchor)
    if kind == "winner":
        return element("text", "◆", class_="diamond", x=scale.at(value), y=MIDDLE_PX + 6, text_anchor="middle")
    return element("circle", class_=f"dot {kind}".strip(), cx=scale.at(value), cy=MIDDLE_PX, r=4.5)


def _anchor(tick: float, scale: Scale) -> str:
    return "start" if tick == scale.low else "end" if tick == scale.ticks[-1] else "middle"


def _sparse(ticks: Sequence[float]) -> list[float]:
    """Every second where there are many, for a phone is narrow; zero among them."""
    if len(ticks) < MOST_TICKS:
        return list(ticks)
    zero = next((i for i, tick in enumerate(ticks) if tick == 0), 0)
    return list(ticks[zero % 2 :: 2])


def _tick(value: float, scale: Scale) -> str:
    step = scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    elif not digits and step % 1:
        digits = 1
    return f"{abs(value) if value == 0 else value:,.{digits}f}".replace("-", "−")
