"""How late this process is: a heartbeat that every run of it shares. A client that is late measures itself."""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import NamedTuple

import gevent
import msgspec

from bench.running.samples import ClientCost

EVERY_S = 0.01
LEAST_MS, FACTOR, CLASSES = 0.05, 1.25, 64
BOUNDS_MS = [LEAST_MS * FACTOR**i for i in range(CLASSES)]  # to about a minute


class Reading(NamedTuple):
    counts: tuple[int, ...]
    at: float
    cpu_s: float


class Heartbeat:
    """Wakes up every EVERY_S seconds and counts, in classes, by how much it was late.

    Classes and no list, so that what a thousand runs ask of it costs each the same, however long it beats.
    """

    def __init__(self) -> None:
        self._counts = [0] * (CLASSES + 1)
        self._greenlet = gevent.spawn(self._beat)

    def stop(self) -> None:
        self._greenlet.kill()

    def reading(self) -> Reading:
        return Reading(tuple(self._counts), time.monotonic(), time.process_time())

    def note(self, late_s: float) -> None:
        self._counts[bisect_right(BOUNDS_MS, late_s * 1000)] += 1

    def _beat(self) -> None:
        while True:
            due = time.monotonic() + EVERY_S
            gevent.sleep(EVERY_S)
            self.note(max(0.0, time.monotonic() - due))


def cost(before: Reading, after: Reading) -> ClientCost | None:
    """Between two readings; None when no beat lies between them. Lateness is its class's upper bound."""
    beats = [late - early for early, late in zip(before.counts, after.counts, strict=True)]
    if not any(beats) or after.at <= before.at:
        return None
    p50, p99, most = (_below(beats, share) for share in (0.5, 0.99, 1.0))
    cpu_share = (after.cpu_s - before.cpu_s) / (after.at - before.at)
    return ClientCost(round(p50, 3), round(p99, 3), round(most, 3), round(cpu_share, 3))


def worse(one: ClientCost | None, other: ClientCost | None) -> ClientCost | None:
    """The worse of each figure: a sitting that was on time makes up for none that was late."""
    if one is None or other is None:
        return one or other
    return ClientCost(*map(max, msgspec.structs.astuple(one), msgspec.structs.astuple(other)))


def _below(beats: list[int], share: float) -> float:
    wanted, seen = share * sum(beats), 0
    for bound, count in zip(BOUNDS_MS, beats, strict=False):
        seen += count
        if seen >= wanted:
            return bound
    return BOUNDS_MS[-1] * FACTOR
