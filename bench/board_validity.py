"""What two looks at a node (GET /node) say against what was measured between them. Pure.

A machine that tells nothing of a cause is not blamed for it: null is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.samples import Mark

Node = Mapping[str, Any]
SWAPPED_PAGES = 256  # a megabyte: more than a daemon that wakes up
REMEDIES = {
    "undervoltage": "use the 27 W supply, and its own cable",
    "frequency_capped": "use the 27 W supply, and cool the board",
    "throttled": "cool the board: a fan, or a larger heat sink",
    "soft_temperature_limit": "cool the board: a fan, or a larger heat sink",
}


def marks(before: Node | None, after: Node | None) -> list[Mark]:
    """Everything that speaks against the time between the two; empty where either is unknown."""
    if not before or not after:
        return []
    return [mark for check in CHECKS for mark in check(before, after)]


def restarts(before: Node, after: Node) -> Iterator[Mark]:
    was, now = before.get("boot_id"), after.get("boot_id")
    if was and now and was != now:
        yield Mark("rebooted", "the node was started anew meanwhile", "measure again")
        return
    uptime = [_at(node, "appliance", "uptime_s") for node in (before, after)]
    if None not in uptime and uptime[1] < uptime[0]:
        yield Mark("restarted", "the appliance was restarted meanwhile", "measure again")


def throttling(before: Node, after: Node) -> Iterator[Mark]:
    """1. A look in between found a bit set. 2. It is set now. 3. The firmware remembers one that it did not before."""
    times = [_at(node, "throttling_seen", "times") or {} for node in (before, after)]
    seen = {name for name, count in times[1].items() if count > times[0].get(name, 0)}
    seen |= set(_at(after, "throttling", "now") or ())
    seen |= set(_at(after, "throttling", "since_boot") or ()) - set(_at(before, "throttling", "since_boot") or ())
    for name in sorted(seen):
        remedy = REMEDIES.get(name, "see what `vcgencmd get_throttled` says")
        yield Mark(name, f"the board reported: {name.replace('_', ' ')}", remedy)


def swapping(before: Node, after: Node) -> Iterator[Mark]:
    pages = 0
    for name in ("pages_swapped_in", "pages_swapped_out"):
        was, now = _at(before, "memory", name), _at(after, "memory", name)
        pages += max(0, now - was) if was is not None and now is not None else 0
    if pages > SWAPPED_PAGES:
        remedy = "choose a smaller N_CTX or model, or end what else takes memory"
        yield Mark("swapping", f"the node swapped {pages} pages", remedy)


CHECKS: tuple[Callable[[Node, Node], Iterator[Mark]], ...] = (restarts, throttling, swapping)


def _at(node: Node, *path: str) -> Any:
    """What lies there; None where any part of the way is missing."""
    found: Any = node
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
