"""A run's figures for people: one table a node, plain text. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.running.outcome import Outcome
from bench.running.summary import BURST_S, SUSTAINED_AFTER_S, Estimate, Quantity, StageSummary

HEADS = (
    "load", "answered", "TTFT p50 ms", "p95", "p99", "TPOT p50 ms", "p95", "queue p95 ms", "decode tok/s", "node tok/s",
)  # fmt: skip


def table(outcome: Outcome) -> str:
    """The node, its loads in rows, and what is to be known of them."""
    rows = [HEADS, *(_row(stage) for stage in outcome.stages)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines = [f"{outcome.node}   run {outcome.run}, seed {outcome.seed}, trace {outcome.trace}"]
    lines += ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += [f"  {line}" for stage in outcome.stages for line in _remarks(stage)]
    if full := outcome.saturation:
        word = "saturated at" if full.is_found else "not saturated yet at"
        lines.append(f"  {word} {full.concurrency} at once, {figure(full.tokens_per_s)} tokens/s: {full.reason}")
    lines += [f"  {'INVALID' if mark.is_invalid else 'note'}: {mark.reason}; {mark.remedy}" for mark in outcome.marks]
    if outcome.problem:
        lines.append(f"  {outcome.status}: {outcome.problem}")
    return "\n".join(line.rstrip() for line in lines)


def figure(estimate: Estimate | None) -> str:
    """A value with its interval; a missing bound is open."""
    if estimate is None:
        return "-"
    if estimate.low is None and estimate.high is None:
        return number(estimate.value)
    low, high = ("" if bound is None else number(bound) for bound in (estimate.low, estimate.high))
    return f"{number(estimate.value)} ({low}..{high})"


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _row(stage: StageSummary) -> Sequence[str]:
    ttft, tpot = stage.quantities["ttft_ms"], stage.quantities["tpot_ms"]
    queue, decode = stage.quantities["queue_ms"], stage.quantities["decode_tokens_per_s"]
    return (
        str(stage.load),
        f"{stage.answered}/{stage.requests}",
        *(_percentile(ttft, name) for name in ("p50", "p95", "p99")),
        *(_percentile(tpot, name) for name in ("p50", "p95")),
        _percentile(queue, "p95"),
        _percentile(decode, "p50"),
        figure(stage.output_tokens_per_s),
    )


def _percentile(quantity: Quantity | None, name: str) -> str:
    return figure(getattr(quantity, name)) if quantity else "-"


def _remarks(stage: StageSummary) -> list[str]:
    lines = []
    if stage.goodput:
        good = stage.goodput
        share = good.share
        sure = f" (95 % CI {share.low or 0:.0%}..{1 if share.high is None else share.high:.0%})"
        lines.append(
            f"{stage.load}: goodput {good.requests_per_s:.3g} requests/s: {good.good} of {good.n} within "
            f"{good.service_level}, {share.value:.0%}{sure}"
        )
    if stage.burst and stage.sustained:
        change = stage.sustained.value / stage.burst.value - 1 if stage.burst.value else 0.0
        lines.append(
            f"{stage.load}: burst {figure(stage.burst)} tokens/s in its first {BURST_S:.0f} s, sustained "
            f"{figure(stage.sustained)} after {SUSTAINED_AFTER_S / 60:.0f} minutes ({change:+.1%})"
        )
    if stage.failures:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in stage.failures.items())
        lines.append(f"{stage.load}: failed: {kinds}")
    return lines
