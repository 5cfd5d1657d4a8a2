"""From values to places in a drawing. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
