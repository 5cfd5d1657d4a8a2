"""What two looks at a node (GET /node) say against what was measured between them. Pure.

A machine that tells nothing of a cause is not blamed for it: null is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.running.samples import Mark

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
    began, ended = (_number(node, "appliance", "uptime_s") for node in (before, after))
    if began is not None and ended is not None and ended < began:
        yield Mark("restarted", "the appliance was restarted meanwhile", "measure again")


def throttling(before: Node, after: Node) -> Iterator[Mark]:
    """1. A look in between found a bit set. 2. It is set now. 3. The firmware remembers one that it did not before."""
    earlier = _at(before, "throttling_seen", "times")
    earlier = earlier if isinstance(earlier, Mapping) else {}
    later = _at(after, "throttling_seen", "times")
    later = later if isinstance(later, Mapping) else {}
    seen = {name for name, count in later.items() if count != earlier.get(name, 0)}
    seen |= _names(after, "now")
    seen |= _names(after, "since_boot") - _names(before, "since_boot")
    for name in sorted(seen):
        remedy = REMEDIES.get(name, "see what `vcgencmd get_throttled` says")
        yield Mark(name, f"the board reported: {name.replace('_', ' ')}", remedy)


def swapping(before: Node, after: Node) -> Iterator[Mark]:
    pages = 0.0
    for name in ("pages_swapped_in", "pages_swapped_out"):
        was, now = _number(before, "memory", name), _number(after, "memory", name)
        pages += max(0.0, now - was) if was is not None and now is not None else 0.0
    if pages > SWAPPED_PAGES:
        remedy = "choose a smaller N_CTX or model, or end what else takes memory"
        yield Mark("swapping", f"the node swapped {pages:.0f} pages", remedy)


CHECKS: tuple[Callable[[Node, Node], Iterator[Mark]], ...] = (restarts, throttling, swapping)


def _at(node: Node, *path: str) -> Any:
    """What lies there; None where any part of the way is missing."""
    found: Any = node
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _number(node: Node, *path: str) -> float | None:
    found = _at(node, *path)
    return float(found) if isinstance(found, int | float) else None


def _names(node: Node, when: str) -> set[str]:
    found = _at(node, "throttling", when)
    return {name for name in found if isinstance(name, str)} if isinstance(found, list | tuple) else set()
