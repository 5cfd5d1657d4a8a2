"""`bench report`: everything that the results say, in one HTML file that opens from disk and asks nobody for anything.

Owns the page as a whole. Figures come from report_data, drawings from report_charts. Pure but for the style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from appliance import __version__
from bench import report_charts as charts
from bench import roofline
from bench.markup import Child, Markup, element, joined
from bench.report_charts import Scale
from bench.report_data import NodeView, Results, RunView, found
from bench.report_node import section
from bench.report_parts import NONE, age, badge, below, day, figure, table
from bench.report_profile import ProfileView, profile_of
from bench.run_table import number
from bench.samples import ClosedLoop

STYLE = Path(__file__).with_suffix(".css")
OPEN_NODES = 6  # of a larger fleet only those that need a look are unfolded
# Nothing may be loaded or run, whatever a name in the results says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


TERMS = (
    (
        "Interval",
        "The 95 % confidence interval, from 16 batches of the samples in the order of time, so that samples which "
        "resemble their neighbours count for less. Intervals that overlap show no difference, nor that there is none.",
    ),
    (
        "“from 5.2”",
        "The data set no upper bound: a high percentile needs hundreds of requests for one. An open bound is dashed.",
    ),
    ("n", "How many answers a figure rests on. Warm-up requests are in none."),
    (
        "Invalid",
        "Something disturbed the run: throttling, undervoltage, other requests, a reload, swapping, a late client. Its "
        "figures are shown and decide nothing; the remedy stands beside the reason.",
    ),
    (
        "Decode tokens/s",
        "Of one stream: (tokens − 1) by the engine's decode time. “Most tokens/s” is all streams together, counted as "
        "they arrive.",
    ),
    (
        "Roofline",
        "The share of the most tokens/s that the memory allows one stream: the bandwidth measured on the node, by the "
        "bytes of the model. A share far below its equals' points to something in the way. Open where the node's "
        "bandwidth was not measured.",
    ),
    (
        "Tied, worse, no better",
        "Tied: surely within the margin of the best. Worse: surely behind it. No better: surely not ahead by the "
        "margin. Undecided: the budget ended first; it means not known, never equal.",
    ),
    ("Stale", "Model, engine or board changed since the profile was measured: tune again."),
    ("Bars and points", "Bars begin at zero. Points need not, and the axis says where it begins."),
)


def page(results: Results, now: datetime, source: str) -> str:
    """The whole file. source: where the results lie, for the reader. now: for ages; with a zone."""
    nodes = results.nodes
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"bench {__version__}"),
        element("title", "Fleet report"),
        element("style", Markup(STYLE.read_text())),
    )
    anchors = [f"node-{number}" for number in range(1, len(nodes) + 1)]
    body = element(
        "body",
        element("header", element("h1", "Fleet report"), _summary(results, now, source)),
        element(
            "main",
            _attention(nodes, anchors),
            _fleet(nodes, anchors, now) if nodes else _nothing(),
            *(section(n, a, now, _is_open(n, len(nodes))) for n, a in zip(nodes, anchors, strict=True)),
            _unreadable(results.unreadable),
            how_to_read(),
        ),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _summary(results: Results, now: datetime, source: str) -> Markup:
    runs = [run for node in results.nodes for run in node.runs]
    invalid = sum(1 for run in runs if not run.is_usable)
    count = len(results.nodes)
    words = f"{count} node{'s' if count != 1 else ''}, {len(runs)} run{'s' if len(runs) != 1 else ''}"
    words += f" ({invalid} invalid or without an answer)" if invalid else ""
    return element(
        "p", f"{words}, from ", element("code", source), f". Written {day(now.isoformat())}; all times are UTC."
    )


def _nothing() -> Markup:
    return element("p", "Nothing was measured yet: ", element("code", "bench run"), " writes the first results.")


def _is_open(node: NodeView, count: int) -> bool:
    return count <= OPEN_NODES or _trouble(node) != []


def _trouble(node: NodeView) -> list[str]:
    """What needs somebody's look, in words."""
    said = []
    newest = node.runs[-1] if node.runs else None
    if newest and not newest.is_usable:
        reasons = [f"{mark.reason}; {mark.remedy}" for mark in newest.marks if mark.is_invalid]
        said.append(f"the newest run is invalid: {'. '.join(reasons) or newest.outcome.problem or 'no answer came'}")
    elif newest and newest.throttling:
        said.append(f"it throttled: {', '.join(newest.throttling).replace('_', ' ')}")
    verdict = node.verifications[-1].verdict if node.verifications else None
    if verdict and verdict.kind == "slower":
        said.append(f"the newest profile that was verified is {verdict}")
    profile = profile_of(node)
    if profile and profile.stale:
        said.append(f"its profile is stale: {'; '.join(profile.stale)}")
    return said


def _attention(nodes: Sequence[NodeView], anchors: Sequence[str]) -> Markup | None:
    rows = [
        element("li", element("a", node.name, href=f"#{anchor}"), f": {words}")
        for node, anchor in zip(nodes, anchors, strict=True)
        for words in _trouble(node)
    ]
    if not rows:
        return None
    return element("section", element("h2", "Needs a look"), element("ul", *rows), class_="attention")


def _fleet(nodes: Sequence[NodeView], anchors: Sequence[str], now: datetime) -> Markup:
    """Side by side, in the order of their names, so that a node is found."""
    singles = [run.single for node in nodes if (run := node.shown)]
    highs = [max(q.p50.value, q.p50.high or 0.0) for single in singles if single for q in single[1:]]
    scale = Scale.from_zero(highs)
    rows = [_fleet_row(node, anchor, scale, now) for node, anchor in zip(nodes, anchors, strict=True)]
    heads = (
        "Node", "Board", "Model", "", "Decode tokens/s", "Most tokens/s", "Of roofline", "Throttled", "Profile",
        "Measured",
    )  # fmt: skip
    foot = ("", "", "", charts.axis(scale), *("" for _ in heads[4:]))
    caption = (
        "Decode speed of one stream: median with its 95 % interval, of each node's newest valid run. "
        "Most: all streams together, at the load that gave most"
    )
    return element(
        "section", element("h2", "The fleet side by side"), table(caption, heads, rows, foot), class_="fleet"
    )


def _fleet_row(node: NodeView, anchor: str, scale: Scale, now: datetime) -> Sequence[Child]:
    link = element("a", node.name, href=f"#{anchor}")
    run = node.shown
    if run is None:
        return (link, *(NONE for _ in range(7)), _profile(profile_of(node), now), NONE)
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
        joined(
            run.fingerprint.get("model") or "–", element("small", f" {found(facts, 'model', 'quantization') or ''}")
        ),
        charts.bar(single[1].p50, scale, "" if usable else "unusable") if single else "",
        figure(single[1].p50, single[1].n) if single else NONE,
        most or NONE,
        _roofline(run),
        _throttled(run.throttling),
        _profile(profile_of(node), now),
        joined(age(run.started_at, now), below(day(run.started_at))),
    )


def _roofline(run: RunView) -> Markup:
    """Of one stream; several read the weights once for all of them."""
    facts, single = run.fingerprint.get("node"), run.single
    if single is None or single[0].load != ClosedLoop(1) or not isinstance(facts, dict):
        return NONE
    ceiling, share = roofline.ceiling_tokens_per_s(facts), roofline.share(single[1].p50.value, facts)
    if ceiling is None or share is None:
        return NONE
    doubt = "; more than it can be: measure the bandwidth anew" if share > 1 else ""
    return joined(element("b", f"{share:.0%}"), below(f"of {number(ceiling)}{doubt}"))


def _throttled(names: tuple[str, ...] | None) -> Markup:
    if names is None:
        return element("span", "not told", class_="none")
    return badge(", ".join(names).replace("_", " "), "bad") if names else element("span", "no")


def _profile(profile: ProfileView | None, now: datetime) -> Markup:
    if profile is None:
        return element("span", "none", class_="none")
    words = [badge("stale", "warn") if profile.stale else None, f" {age(profile.at, now)} "]
    force = {True: "in force", False: "not in force", None: ""}[profile.is_in_force]
    said = ", ".join(part for part in ("proposed by a tune" if profile.is_proposal else "", force) if part)
    return joined(*words, below(said))


def _unreadable(files: Sequence[tuple[str, str]]) -> Markup | None:
    if not files:
        return None
    rows = [element("li", why) for _, why in files]
    return element("section", element("h2", "Files that could not be read"), element("ul", *rows))


def how_to_read() -> Markup:
    terms = [joined(element("dt", name), element("dd", text)) for name, text in TERMS]
    return element("section", element("h2", "How to read it"), element("dl", *terms, class_="terms"))
