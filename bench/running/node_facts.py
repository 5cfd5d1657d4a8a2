"""What a node says of itself over HTTP: /health, /ready, its counters, and GET /node where it has that."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gevent
import msgspec

from bench.inventory.tuned_profile import basis, changes
from bench.knobs import KNOBS
from bench.running.client import BenchError, Patience, Target, Unreachable, WrongKey, get
from bench.running.samples import Facts

QUICK = Patience(connect_s=5.0, answer_s=15.0, silence_s=15.0)
READY_WAIT_S, ASK_EVERY_S = 180.0, 0.5  # a model takes half a minute from an SD card
LASTING = ("draining", "benchmarking")


class AnotherNode(BenchError):
    """What is resumed began on another model, engine or board, or under other settings."""


class NotReady(BenchError):
    """The node answers, but would take no generation now. is_passing: it gets on by itself."""

    may_pass = True

    def __init__(self, target: Target, reason: str) -> None:
        super().__init__(f"{target.name}: not ready: {reason}. Measure again when {target.url}/ready answers 200.")
        self.is_passing = reason not in LASTING


def require_ready(target: Target, wait_s: float = READY_WAIT_S) -> None:
    """Wait while the node loads its model, which it does by itself; refuse one that is busy or does not get on.

    Raises: NotReady with the node's own reason, Unreachable, WrongKey (the counters need a key).
    """
    ends_at = time.monotonic() + wait_s
    while (reason := _reason_not_ready(target)) is not None:
        if reason in LASTING or time.monotonic() > ends_at:
            raise NotReady(target, reason)
        gevent.sleep(ASK_EVERY_S)
    get(target, "/metrics", QUICK)


def require_answer(target: Target) -> None:
    """Raises: Unreachable."""
    get(target, "/live", QUICK)


def _reason_not_ready(target: Target) -> str | None:
    status, body = get(target, "/ready", QUICK)
    return None if status == 200 else str((_object(body) or {}).get("reason", f"status {status}"))


def look(target: Target, moment: Literal["before", "during", "after"], at_s: float) -> Facts:
    """What is true of the node now; None and nothing where it does not say. Raises: WrongKey."""
    node, health = _json(target, "/node"), _json(target, "/health")
    return Facts(round(at_s, 3), moment, node, health, counters(_text(target, "/metrics")))


def during(target: Target, at_s: float) -> Facts:
    """As little as the machine's own state needs: it is looked at while it is measured. Raises: WrongKey."""
    return Facts(round(at_s, 3), "during", _json(target, "/node"))


def require_same(node: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
    """Raises: AnotherNode."""
    _refuse(node, changes(basis(then), basis(now)))


def require_unchanged(node: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
    """The same node with the same settings in force, as far as both looks tell. Raises: AnotherNode."""
    were, are = ((told or {}).get("settings") or {} for told in (then, now))
    others = [name for name in KNOBS if name in were and name in are and were[name] != are[name]]
    told = [f"{name} was {were[name]} when it was measured, and is {are[name]} now" for name in others]
    _refuse(node, [*changes(basis(then), basis(now)), *told])


def _refuse(node: str, reasons: Sequence[str]) -> None:
    if reasons:
        raise AnotherNode(f"{node}: {'; '.join(reasons)}: what was measured on both does not compare. Begin anew.")


def counters(text: str) -> dict[str, float]:
    """The appliance's counters in Prometheus' text, each summed over its labels."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name.startswith("appliance_") and name.endswith("_total"):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def fingerprint(facts: Facts) -> dict[str, Any]:
    """What makes a figure this node's and no other's, as far as the node says it: null is not known."""
    health = facts.health or {}
    named = {"model": "model_path", "appliance": "version", "release": "release", "slots": "max_concurrent"}
    return {**{ours: health.get(theirs) for ours, theirs in named.items()}, "node": facts.node}


def _json(target: Target, path: str) -> dict[str, Any] | None:
    return _object(_text(target, path).encode())


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(raw)
    except msgspec.MsgspecError:
        return None
    return found if isinstance(found, dict) else None


def _text(target: Target, path: str) -> str:
    try:
        status, body = get(target, path, QUICK)
    except WrongKey:
        raise
    except Unreachable:
        return ""
    return body.decode(errors="replace") if status == 200 else ""
