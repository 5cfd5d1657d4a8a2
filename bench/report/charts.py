"""Drawings for a report: strips within tables, and a node's history. Inline SVG in percent, so that they fit any width.

A strip adds nothing that the numbers beside it do not say, so it is hidden from screen readers. Shapes differ as
colours do. Pure; must not know what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.report.markup import Markup, element, joined
from bench.report.scale import MOST_TICKS, Scale
from bench.running.summary import Estimate, Quantity

STRIP_PX, MIDDLE_PX, CAP_PX = 24, 12, 4


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
        element("text", f"{tick_label(t, scale)} {unit}".rstrip(), x=scale.at(t), y=12, text_anchor=_anchor(t, scale))
        for t in _sparse(scale.ticks)
    ]
    return element("svg", *labels, class_="axis", height=16, width="100%", aria_hidden="true")


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


def tick_label(value: float, scale: Scale) -> str:
    step = scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    elif not digits and step % 1:
        digits = 1
    return f"{abs(value) if value == 0 else value:,.{digits}f}".replace("-", "−")
