"""The fleet side by side, and what in it needs a look. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from bench import roofline
from bench.report import charts
from bench.report.data import NodeView, RunView, found, verdict_of
from bench.report.markup import Child, Markup, element, joined
from bench.report.parts import NONE, age, badge, below, day, figure, share, table
from bench.report.profile import ProfileView, profile_of
from bench.report.scale import Scale
from bench.running.run_table import number
from bench.statistics.comparison import Verdict


def trouble(node: NodeView) -> list[str]:
    """What needs somebody's look, in words."""
    said = []
    newest = node.runs[-1] if node.runs else None
    if newest and not newest.is_usable:
        reasons = dict.fromkeys(f"{mark.reason} ({mark.remedy})" for mark in newest.marks if mark.is_invalid)
        said.append(f"the newest run is invalid: {'; '.join(reasons) or newest.outcome.problem or 'no answer came'}")
    elif newest and newest.throttling:
        said.append(f"it throttled: {', '.join(newest.throttling).replace('_', ' ')}")
    newest_proof = node.verifications[-1] if node.verifications else None
    verdict = verdict_of(newest_proof) if newest_proof else None
    if newest_proof and verdict and verdict.kind == "slower":
        then = "; the previous one was brought back" if newest_proof.restored else ""
        said.append(f"the newest profile that was verified is {verdict}{then}")
    profile = profile_of(node)
    if profile and profile.stale:
        said.append(f"its profile is stale: {'; '.join(profile.stale)}")
    return said


def attention(nodes: Sequence[NodeView], anchors: Sequence[str]) -> Markup | None:
    rows = [
        element("li", element("a", node.name, href=f"#{anchor}"), f": {words}")
        for node, anchor in zip(nodes, anchors, strict=True)
        for words in trouble(node)
    ]
    if not rows:
        return None
    return element("section", element("h2", "Needs a look"), element("ul", *rows), class_="attention")


def fleet(nodes: Sequence[NodeView], anchors: Sequence[str], now: datetime) -> Markup:
    """Side by side, in the order of their names, so that a node is found."""
    singles = [run.single[1] for node in nodes if (run := node.shown) and run.single]
    by_blocks = [blocks.decode_tokens_per_s for node in nodes if not node.shown and (blocks := node.blocks)]
    scale = Scale.from_zero([max(q.p50.value, q.p50.high or 0.0) for q in (*singles, *by_blocks)])
    rows = [_fleet_row(node, anchor, scale, now) for node, anchor in zip(nodes, anchors, strict=True)]
    heads = (
        "Node", "Board", "Model", "", "Decode tokens/s", "Most tokens/s", "Of roofline", "Throttled", "Profile",
        "Measured",
    )  # fmt: skip
    foot = ("", "", "", charts.axis(scale), *("" for _ in heads[4:]))
    caption = (
        "Decode speed of one stream: median with its 95 % interval, of each node's newest valid run; without one, of "
        "the blocks of its tune or verification. Most: all streams together, at the load that gave most"
    )
    return element(
        "section", element("h2", "The fleet side by side"), table(caption, heads, rows, foot), class_="fleet"
    )


def _fleet_row(node: NodeView, anchor: str, scale: Scale, now: datetime) -> Sequence[Child]:
    link = element("a", node.name, href=f"#{anchor}")
    run = node.shown
    if run is None:
        return _row_by_blocks(node, link, scale, now)
    single, full = run.single, run.fullest
    facts = run.fingerprint.get("node")
    usable, latest = run.is_usable, node.runs[-1].is_usable
    state = badge("invalid" if not usable else "newest run invalid", "bad")
    most = None
    if full:
        most = joined(figure(full.output_tokens_per_s), below(str(full.load)))
    return (
        joined(link, None if latest else joined(" ", state)),
        found(facts, "board", "name") or NONE,
        _model(run.fingerprint),
        charts.bar(single[1].p50, scale, "" if usable else "unusable") if single else "",
        figure(single[1].p50, single[1].n) if single else NONE,
        most or NONE,
        _roofline(run),
        _throttled(run.throttling),
        _profile(profile_of(node), now),
        joined(_ago(run.started_at, now), below(day(run.started_at))),
    )


def _row_by_blocks(node: NodeView, link: Markup, scale: Scale, now: datetime) -> Sequence[Child]:
    """Of a node that no run tells of: what its tune or verification measured."""
    blocks = node.blocks
    if blocks is None:
        return (link, *(NONE for _ in range(7)), _profile(profile_of(node), now), NONE)
    speed, facts = blocks.decode_tokens_per_s, blocks.fingerprint.get("node")
    return (
        link,
        found(facts, "board", "name") or NONE,
        _model(blocks.fingerprint),
        charts.bar(speed.p50, scale),
        joined(figure(speed.p50, speed.n), below(f"blocks of {blocks.source}")),
        NONE,
        _share_of_roofline(speed.p50.value, facts),
        _throttled(blocks.throttling),
        _profile(profile_of(node), now),
        joined(_ago(blocks.started_at, now), below(day(blocks.started_at))),
    )


def _model(fingerprint: Mapping[str, Any]) -> Markup:
    facts = fingerprint.get("node")
    name = fingerprint.get("model") or found(facts, "model", "name") or "–"
    return joined(name, element("small", f" {found(facts, 'model', 'quantization') or ''}"))


def _roofline(run: RunView) -> Markup:
    """Of one stream; several read the weights once for all of them."""
    if run.single is None or not run.is_of_one_stream:
        return NONE
    return _share_of_roofline(run.single[1].p50.value, run.fingerprint.get("node"))


def _share_of_roofline(tokens_per_s: float, facts: Any) -> Markup:
    known = found(facts, "bandwidth", "bytes_per_s"), found(facts, "model", "size_bytes")
    if not all(isinstance(value, int | float) for value in known):
        return NONE
    ceiling, reached = roofline.ceiling_tokens_per_s(facts), roofline.share(tokens_per_s, facts)
    if ceiling is None or reached is None:
        return NONE
    doubt = "; more than it can be: measure the bandwidth anew" if reached > 1 else ""
    return joined(element("b", f"{reached:.0%}"), below(f"of {number(ceiling)}{doubt}"))


def _throttled(names: tuple[str, ...] | None) -> Markup:
    if names is None:
        return element("span", "not told", class_="none")
    return badge(", ".join(names).replace("_", " "), "bad") if names else element("span", "no")


def _profile(profile: ProfileView | None, now: datetime) -> Markup:
    if profile is None:
        return element("span", "none", class_="none")
    words = [badge("stale", "warn") if profile.stale else None, " ", _ago(profile.at, now)]
    unknown = "" if profile.is_proposal else "not known whether in force"
    force = {True: "in force", False: "not in force", None: unknown}[profile.is_in_force]
    said = ", ".join(part for part in ("proposed by a tune" if profile.is_proposal else "", force) if part)
    return joined(*words, below(said), below(_proved(profile.proof)) if profile.proof else None)


def _proved(verdict: Verdict) -> Markup:
    low, high = verdict.ci95
    words = "verified: no difference" if verdict.kind == "same" else f"verified: {verdict.kind}"
    return joined(f"{words}, ", _whole(share(verdict.change)), " ", _whole(f"({share(low)} to {share(high)})"))


def _ago(at: str, now: datetime) -> Markup:
    return _whole(age(at, now))


def _whole(words: str) -> Markup:
    """Never broken into lines."""
    return element("span", words, class_="whole")
