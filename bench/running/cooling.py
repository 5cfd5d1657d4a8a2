"""A board is let cool down before it is measured, so that each measuring begins alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import gevent

from bench.running.samples import Facts

COOL_TO_C = 70.0  # a Pi slows down at 80; a block of half a minute takes it up by less than ten degrees
COOL_WAIT_S = 180.0
PAUSE_S = 5.0


@dataclass(frozen=True)
class Cooling:
    """to_c: what a board must be down to. clock: monotonic seconds."""

    to_c: float = COOL_TO_C
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = gevent.sleep

    def wait(self, looked: Facts | None, look: Callable[[], Facts], tell: Callable[[str], None]) -> Facts | None:
        """Wait until the board is cool, COOL_WAIT_S at most, and return the last look at it.

        looked: the last one until now. One that stays hot is measured: what heat does to the figures shows in the
        throttle bits and in the clocks. A machine that tells no temperature is not waited for.
        """
        ends_at = self.clock() + COOL_WAIT_S
        while (now_c := temperature_c(looked)) is not None and now_c > self.to_c and self.clock() < ends_at:
            tell(f"cooling down from {now_c:.0f} °C")
            self.sleep(PAUSE_S)
            looked = look()
        return looked


def temperature_c(facts: Facts | None) -> float | None:
    found = facts.node.get("temperature_c") if facts and facts.node else None
    return float(found) if isinstance(found, int | float) else None
