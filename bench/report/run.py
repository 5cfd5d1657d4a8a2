"""What one run showed: throughput and latency under each load. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report import charts
from bench.report.data import RunView
from bench.report.markup import Child, Markup, element, joined
from bench.report.parts import NONE, below, figure, interval, table
from bench.report.scale import Scale
from bench.running.run_table import number
from bench.running.summary import Quantity, StageSummary

LATENCIES = {
    "ttft_ms": ("Time to first token (TTFT), ms", "from the planned sending to the first token"),
    "tpot_ms": ("Time per output token (TPOT), ms", "(last token − first token) / (tokens − 1) of each answer"),
    "e2e_ms": ("Whole answer (E2E), ms", "from the planned sending to the end"),
    "itl_ms": ("Gap between tokens (ITL), ms", "every gap between two token events"),
    "queue_ms": ("Time in the node's line, ms", "by the node itself"),
}
MAIN = ("ttft_ms", "tpot_ms")


def loads(run: RunView) -> Markup:
    stages = run.outcome.stages
    if not stages:
        return element("p", "Nothing was measured in it.")
    tops = [stage.output_tokens_per_s.high or stage.output_tokens_per_s.value for stage in stages]
    scale = Scale.from_zero([*tops, *(stage.output_tokens_per_s.value for stage in stages)])
    rows: list[Sequence[Child]] = [
        (
            str(stage.load),
            charts.bar(stage.output_tokens_per_s, scale),
            figure(stage.output_tokens_per_s),
            _sustained(stage),
            _p50(stage.quantities.get("decode_tokens_per_s")),
            f"{stage.requests_per_s:.3g}",
            _answered(stage),
        )
        for stage in stages
    ]
    heads = ("Load", "", "Node, tokens/s", "Sustained", "One stream, decode tokens/s", "Requests/s", "Answered")
    full = run.outcome.saturation
    word = "Saturated" if full and full.is_found else "Not saturated yet"
    said = f"{word} at {full.concurrency} at once: {full.reason}." if full else None
    return joined(
        element("h3", "Throughput under load"),
        table(
            "All streams together, mean with its 95 % interval",
            heads,
            rows,
            ("", charts.axis(scale), *("" for _ in heads[2:])),
        ),
        element("p", said, class_="note") if said else None,
    )


def _sustained(stage: StageSummary) -> Markup:
    if stage.burst is None or stage.sustained is None:
        return NONE
    burst = f"burst {number(stage.burst.value)} ({interval(stage.burst.low, stage.burst.high)})"
    return joined(figure(stage.sustained), below(burst))


def _p50(quantity: Quantity | None) -> Markup:
    return figure(quantity.p50, quantity.n) if quantity else NONE


def _answered(stage: StageSummary) -> Markup:
    failed = ", ".join(f"{count} × {kind}" for kind, count in stage.failures.items())
    return joined(
        f"{stage.answered} of {stage.requests}",
        element("small", f" failed: {failed}", class_="below bad") if failed else None,
    )


def latencies(run: RunView) -> Markup | None:
    if not any(stage.answered for stage in run.outcome.stages):
        return None
    main = [_latency(run, name) for name in LATENCIES if name in MAIN]
    others = [_latency(run, name) for name in LATENCIES if name not in MAIN]
    return joined(
        element("h3", "Latency"),
        element("p", "● p50 with its 95 % interval, | p95, ○ p99. Dashed: the data set no bound.", class_="note"),
        *main,
        element("details", element("summary", "Whole answers, gaps between tokens, time in line"), *others),
    )


def _latency(run: RunView, name: str) -> Markup | None:
    stages = [(stage, quantity) for stage in run.outcome.stages if (quantity := stage.quantities.get(name))]
    if not stages:
        return None
    scale = Scale.from_zero([quantity.p99.value for _, quantity in stages])
    title, meaning = LATENCIES[name]
    rows: list[Sequence[Child]] = [
        (
            str(stage.load),
            charts.percentiles(quantity, scale),
            *(figure(getattr(quantity, percentile)) for percentile in ("p50", "p90", "p95", "p99")),
            str(quantity.n),
        )
        for stage, quantity in stages
    ]
    heads = ("Load", "", "p50", "p90", "p95", "p99", "n")
    return table(f"{title}: {meaning}", heads, rows, ("", charts.axis(scale), "", "", "", "", ""))
