"""`bench report`: everything that the results say, in one HTML file that opens from disk and asks nobody for anything.

Owns the page as a whole. Figures come from data.py, drawings from charts.py. Pure but for the style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from appliance import __version__
from bench.report.data import NodeView, Results
from bench.report.fleet import attention, fleet, trouble
from bench.report.markup import Markup, element, joined
from bench.report.node import section
from bench.report.parts import day
from bench.running.summary import BURST_S, SUSTAINED_AFTER_S

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
        "The data set no upper bound: a high percentile needs hundreds of requests for one. An open bound is dashed. "
        "“No interval”: the data set neither.",
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
        "they arrive. Of a node that no run tells of, the winner's blocks in its tune stand, a little flattered by the "
        "choice, or those of a newer verification.",
    ),
    (
        "Sustained",
        f"All streams together, from {SUSTAINED_AFTER_S / 60:.0f} minutes on, and below it the burst, the first "
        f"{BURST_S:.0f} s: a board that heats up slows down between. None for a load that was shorter.",
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
            attention(nodes, anchors),
            fleet(nodes, anchors, now) if nodes else _nothing(),
            *(section(n, a, now, _is_open(n, len(nodes))) for n, a in zip(nodes, anchors, strict=True)),
            _unreadable(results.unreadable),
            how_to_read(),
        ),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _summary(results: Results, now: datetime, source: str) -> Markup:
    runs = [run for node in results.nodes for run in node.runs]
    invalid = sum(1 for run in runs if not run.is_usable)
    tunes = sum(len(node.tunes) for node in results.nodes)
    proofs = sum(len(node.verifications) for node in results.nodes)
    words = f"{_counted(len(results.nodes), 'node')}, {_counted(len(runs), 'run')}"
    words += f" ({invalid} invalid or without an answer)" if invalid else ""
    words += f", {_counted(tunes, 'tune')}, {_counted(proofs, 'verification')}" if tunes or proofs else ""
    return element(
        "p", f"{words}, from ", element("code", source), f". Written {day(now.isoformat())}; all times are UTC."
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _nothing() -> Markup:
    return element("p", "Nothing was measured yet: ", element("code", "bench run"), " writes the first results.")


def _is_open(node: NodeView, count: int) -> bool:
    return count <= OPEN_NODES or trouble(node) != []


def _unreadable(files: Sequence[tuple[str, str]]) -> Markup | None:
    if not files:
        return None
    rows = [element("li", why) for _, why in files]
    return element("section", element("h2", "Files that could not be read"), element("ul", *rows))


def how_to_read() -> Markup:
    terms = [joined(element("dt", name), element("dd", text)) for name, text in TERMS]
    return element("section", element("h2", "How to read it"), element("dl", *terms, class_="terms"))
