"""One node in a report: what it is, which run its figures are of, and what speaks against it. Pure."""

from __future__ import annotations

from datetime import datetime

from bench.report.data import BlockSpeed, NodeView, RunView, found
from bench.report.history import history
from bench.report.markup import Child, Markup, element, joined
from bench.report.parts import age, badge, facts, marks
from bench.report.run import latencies, loads
from bench.report.settings import race
from bench.report.verified import verifications


def section(node: NodeView, anchor: str, now: datetime, is_open: bool) -> Markup:
    """anchor: stands within what is folded, since a browser unfolds what a link leads into, not what it leads to."""
    run = node.shown
    return element(
        "details",
        element("summary", element("h2", node.name), _badges(node)),
        element(
            "div",
            _machine(run or node.blocks),
            _standing(node, now),
            *(loads(run), latencies(run)) if run else (),
            race(node.tune, now) if node.tune else None,
            verifications(node.verifications, now),
            history(node),
            class_="inside",
            id=anchor,
        ),
        class_="node",
        open=is_open,
    )


def _badges(node: NodeView) -> Markup:
    run = node.shown
    if run is None:
        return badge("tuned, no load yet" if node.tunes or node.verifications else "no run", "plain")
    newest = node.runs[-1]
    state = badge("valid", "good") if newest.is_usable else badge("newest run invalid", "bad")
    return joined(" ", state, joined(" ", badge("throttled", "bad")) if newest.throttling else None)


def _machine(run: RunView | BlockSpeed | None) -> Markup | None:
    if run is None:
        return None
    node = run.fingerprint.get("node")
    cool = run.temperatures_c if isinstance(run, RunView) else None
    memory = found(node, "board", "memory_mib")
    digest = found(node, "model", "digest")
    return facts(
        [
            ("Board", found(node, "board", "name")),
            ("Memory", f"{memory / 1024:.1f} GiB" if isinstance(memory, int | float) else None),
            ("System", found(node, "board", "os")),
            ("Kernel", found(node, "board", "kernel")),
            ("Firmware", found(node, "board", "firmware")),
            ("Governor", found(node, "governor")),
            ("Temperature", f"{cool[0]:.0f} °C before, {cool[1]:.0f} °C at most" if cool else None),
            ("Throttling", _throttling(run)),
            ("Engine", found(node, "engine", "version")),
            ("Model", run.fingerprint.get("model") or found(node, "model", "name")),
            ("Quantization", found(node, "model", "quantization")),
            ("Model digest", element("code", digest[:12]) if isinstance(digest, str) else None),
            ("Appliance", run.fingerprint.get("release") or run.fingerprint.get("appliance")),
            ("Settings", _in_force(run) if isinstance(run, RunView) else None),
        ]
    )


def _in_force(run: RunView) -> Markup:
    return joined(
        *(joined(element("code", f"{name}={value}", class_="knob"), " ") for name, value in run.settings.items())
    )


def _throttling(run: RunView | BlockSpeed) -> str:
    if run.throttling is None:
        return "this machine does not tell"
    return ", ".join(name.replace("_", " ") for name in run.throttling) or "none seen"


def _standing(node: NodeView, now: datetime) -> Markup:
    """Which run the figures are of, and what speaks against it, or against newer ones."""
    run = node.shown
    if run is None:
        how = "No load was put on it yet: throughput and latency come from "
        return element("p", how, element("code", "bench run"), ".")
    newer = [later for later in node.runs if later.outcome.run > run.outcome.run]
    words: list[Child] = ["Figures of run ", element("code", run.outcome.run), f", {age(run.started_at, now)}"]
    words.append(
        ", the newest valid one." if run.is_usable else ". No run of this node is valid: decide nothing by it."
    )
    problem = run.outcome.problem
    return joined(
        element("p", *words),
        marks(run.marks),
        element("p", f"{run.outcome.status}: {problem}", class_="problem") if problem else None,
        *(
            element(
                "div",
                element("p", f"A newer run, {later.outcome.run}, is not used:"),
                marks(later.marks),
                element("p", later.outcome.problem, class_="problem") if later.outcome.problem else None,
            )
            for later in newer[-3:]
        ),
    )
