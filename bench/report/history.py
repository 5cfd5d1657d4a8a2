"""How a node went over its runs. Pure."""

from __future__ import annotations

from bench.report.data import NodeView, RunView, changed
from bench.report.markup import Markup, element, joined
from bench.report.parts import NONE, badge, below, day, figure, interval, table
from bench.report.plot import Point, plot
from bench.running.run_table import number
from bench.running.summary import Quantity, StageSummary

HISTORY_RUNS = 40


def history(node: NodeView) -> Markup | None:
    """Decode speed over the node's runs; None where there is only one, which was told of above."""
    runs = [run for run in node.runs if run.single][-HISTORY_RUNS:]
    if len(runs) < 2:
        return None
    before: dict[str, object] = {}
    points, rows = [], []
    for run in runs:
        changes = changed(before, run.settings)
        before = run.settings or before
        assert run.single is not None
        stage, decode = run.single
        points.append(_point(run, stage, decode, changes))
        rows.append(
            (
                joined(day(run.started_at), below(run.outcome.run[-6:])),
                figure(decode.p50, decode.n),
                str(stage.load),
                f"{stage.prompt_tokens or 0:.0f} / {stage.completion_tokens or 0:.0f}",
                "; ".join(changes) or NONE,
                badge("valid", "good") if run.is_usable else _why_invalid(run),
            )
        )
    heads = ("Run", "Decode tokens/s", "Load", "Tokens in / out", "Settings changed", "Validity")
    left_out = len(node.runs) - len(runs)
    note = f" {left_out} runs without figures, or older ones, are left out." if left_out else ""
    return joined(
        element("h3", "History"),
        element(
            "p",
            "Runs in their order, at equal distances. Joined: same load. Dashed line: settings changed. "
            f"✕: invalid.{note}",
            class_="note",
        ),
        plot(points, "Decode tokens/s of one stream, p50 with its 95 % interval"),
        table("The same as a table, the newest first", heads, rows[::-1]),
    )


def _point(run: RunView, stage: StageSummary, decode: Quantity, changes: list[str]) -> Point:
    estimate = decode.p50
    title = f"{run.outcome.run}: {number(estimate.value)} ({interval(estimate.low, estimate.high)}), {stage.load}"
    lengths = f"{stage.prompt_tokens or 0:.0f}/{stage.completion_tokens or 0:.0f}"
    group = f"{stage.load} {lengths}"
    return Point(estimate, run.is_usable, group, day(run.started_at)[5:10], "; ".join(changes), title)


def _why_invalid(run: RunView) -> Markup:
    reasons = "; ".join(mark.reason for mark in run.marks if mark.is_invalid) or run.outcome.problem
    return joined(badge("invalid", "bad"), element("small", f" {reasons}"))
