"""What two looks at a node (GET /node) say against what was measured between them. Pure.

A machine that tells nothing of a cause is not blamed for it: null is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.running.samples import Mark

Node = Mapping[str, Any]
SWAPPED_PAGES = 256  # a megabyte: more than a daemon that wakes up
CLOCK_DROP = 0.05  # a Pi 5's clock has steps of 4 %
WHAT_IS_MEASURED = {
    ("model", "name"): "the model",
    ("model", "digest"): "the model's digest",
    ("engine", "version"): "Ollama",
}
REMEDIES = {
    "undervoltage": "use the 27 W supply, and its own cable",
    "frequency_capped": "use the 27 W supply, and cool the board",
    "throttled": "cool the board: a fan, or a larger heat sink",
    "soft_temperature_limit": "cool the board: a fan, or a larger heat sink",
}


def marks(before: Node | None, after: Node | None, under_load: Sequence[Node] = ()) -> list[Mark]:
    """Everything that speaks against the time between the two; empty where either is unknown.

    under_load: looks in between, while it surely generated.
    """
    if not before or not after:
        return []
    return [*(mark for check in CHECKS for mark in check(before, after)), *clock_drops(before, under_load, after)]


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


def changes(before: Node, after: Node) -> Iterator[Mark]:
    """Another model or engine: what was measured is of neither."""
    for (part, name), what in WHAT_IS_MEASURED.items():
        was, now = _at(before, part, name), _at(after, part, name)
        if was is not None and now is not None and was != now:
            yield Mark("changed", f"{what} was {was}, and is {now} now", "measure again, while nobody changes the node")


def clock_drops(before: Node, under_load: Sequence[Node], after: Node) -> Iterator[Mark]:
    """The processor's clock fell below that at the start by more than CLOCK_DROP, a share.

    1. The start is the first look. 2. An idle processor is slow unless its governor is `performance`, so with any
    other only looks under load count.
    """
    looks = [before, *under_load, after] if is_steady(before) else under_load
    known = [mhz for look in looks if (mhz := clock_mhz(look)) is not None]
    if known and min(known) < known[0] * (1 - CLOCK_DROP):
        remedy = "cool the board and use the 27 W supply" + (
            "" if is_steady(before) else ", or the governor `performance`"
        )
        yield Mark("clock_drop", f"the processor's clock fell from {known[0]:.0f} to {min(known):.0f} MHz", remedy)


def is_steady(node: Node) -> bool:
    """Whether its processor keeps its clock while it is idle."""
    return bool(_at(node, "governor") == "performance")


def clock_mhz(node: Node | None) -> float | None:
    """What the firmware measured, else the slowest of what the kernel has set; None where neither is told."""
    measured, now = _at(node or {}, "clocks", "measured"), _at(node or {}, "clocks", "now")
    if isinstance(measured, int | float):
        return float(measured)
    known = [float(mhz) for mhz in now if isinstance(mhz, int | float)] if isinstance(now, list | tuple) else []
    return min(known, default=None)


CHECKS: tuple[Callable[[Node, Node], Iterator[Mark]], ...] = (restarts, throttling, swapping, changes)


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
