"""One node in a report: what it is, what its newest run showed, what its tune found, how it went over time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from bench import report_charts as charts
from bench.markup import Child, Markup, element, joined
from bench.racing import Fate, Outcome
from bench.report_charts import Point, Scale
from bench.report_data import NodeView, RunView, changed, found
from bench.report_parts import NONE, age, badge, below, day, facts, figure, interval, marks, share, table
from bench.run_table import number
from bench.summary import Estimate, Quantity, StageSummary
from bench.tune_file import TuneRun

HISTORY_RUNS = 40
SETTINGS_SHOWN = 12
WORST_SHOWN = -0.30  # a setting that is further behind becomes an arrow, or the others would not be told apart
LATENCIES = {
    "ttft_ms": ("Time to first token (TTFT), ms", "from the planned sending to the first token"),
    "tpot_ms": ("Time per output token (TPOT), ms", "(last token − first token) / (tokens − 1) of each answer"),
    "e2e_ms": ("Whole answer (E2E), ms", "from the planned sending to the end"),
    "itl_ms": ("Gap between tokens (ITL), ms", "every gap between two token events"),
    "queue_ms": ("Time in the node's line, ms", "by the node itself"),
}
MAIN = ("ttft_ms", "tpot_ms")
STOPPED = {
    "sure": "nothing that still matters was undecided",
    "budget": "the budget was spent first, so the winner is the best so far",
    "no candidates": "no settings could be measured within the limits",
}
FATES = {"winner": "good", "tied": "plain", "worse": "bad", "ruled out": "warn", "not measured": "warn"}


def section(node: NodeView, anchor: str, now: datetime, is_open: bool) -> Markup:
    run = node.shown
    return element(
        "details",
        element("summary", element("h2", node.name), _badges(node)),
        _machine(run) if run else None,
        _standing(node, now),
        *(_loads(run), _latencies(run)) if run else (),
        _race(node.tune, now) if node.tune else None,
        _history(node),
        class_="node",
        id=anchor,
        open=is_open,
    )


def _badges(node: NodeView) -> Markup:
    run = node.shown
    if run is None:
        return badge("no run", "warn")
    return joined(
        " ",
        badge("valid", "good") if run.is_usable else badge("invalid", "bad"),
        joined(" ", badge("throttled", "bad")) if run.throttling else None,
    )


def _machine(run: RunView) -> Markup:
    node = run.fingerprint.get("node")
    cool = run.temperatures_c
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
            ("Model", run.fingerprint.get("model")),
            ("Quantization", found(node, "model", "quantization")),
            ("Model digest", element("code", digest[:12]) if isinstance(digest, str) else None),
            ("Appliance", run.fingerprint.get("release") or run.fingerprint.get("appliance")),
            ("Settings", _in_force(run)),
        ]
    )


def _in_force(run: RunView) -> Markup:
    return joined(
        *(joined(element("code", f"{name}={value}", class_="knob"), " ") for name, value in run.settings.items())
    )


def _throttling(run: RunView) -> str:
    if run.throttling is None:
        return "this machine does not tell"
    return ", ".join(name.replace("_", " ") for name in run.throttling) or "none seen"


def _standing(node: NodeView, now: datetime) -> Markup:
    """Which run the figures are of, and what speaks against it, or against newer ones."""
    run = node.shown
    if run is None:
        return element("p", "Tuned, but no run of `bench run` lies here.")
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
                element("p", f"A newer run, {later.outcome.run}, is not used ({later.outcome.status}):"),
                marks(later.marks),
                element("p", later.outcome.problem, class_="problem") if later.outcome.problem else None,
            )
            for later in newer[-3:]
        ),
    )


def _loads(run: RunView) -> Markup:
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
            _p50(stage.quantities.get("decode_tokens_per_s")),
            f"{stage.requests_per_s:.3g}",
            _answered(stage),
        )
        for stage in stages
    ]
    heads = ("Load", "", "Node, tokens/s", "One stream, decode tokens/s", "Requests/s", "Answered")
    full = run.outcome.saturation
    word = "Saturated" if full and full.is_found else "Not saturated yet"
    said = f"{word} at {full.concurrency} at once: {full.reason}." if full else None
    return joined(
        element("h3", "Throughput under load"),
        table(
            "All streams together, mean with its 95 % interval", heads, rows, ("", charts.axis(scale), "", "", "", "")
        ),
        element("p", said, class_="note") if said else None,
    )


def _p50(quantity: Quantity | None) -> Markup:
    return figure(quantity.p50, quantity.n) if quantity else NONE


def _answered(stage: StageSummary) -> Markup:
    failed = ", ".join(f"{count} × {kind}" for kind, count in stage.failures.items())
    return joined(
        f"{stage.answered} of {stage.requests}",
        element("small", f" failed: {failed}", class_="below bad") if failed else None,
    )


def _latencies(run: RunView) -> Markup | None:
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


def _race(tune: TuneRun, now: datetime) -> Markup:
    outcome = tune.outcome
    when = f"Tune {tune.id}, {age(tune.started_at, now)}"
    if outcome is None:
        counted = sum(1 for block in tune.blocks if block.status == "measured")
        said = f"{when}, {tune.status} after {counted} measured blocks. `bench tune --resume` goes on with it."
        return joined(element("h3", "Settings"), element("p", said), _problem(tune))
    default = tune.plan.default
    return joined(
        element("h3", "Settings against throughput" if tune.plan.objective == "throughput" else "Settings compared"),
        element("p", f"{when}, objective {tune.plan.objective}. {_verdict(outcome, default == _winner(outcome))}"),
        _problem(tune),
        _settings(tune, outcome),
        _invalid_blocks(tune),
    )


def _winner(outcome: Outcome) -> object:
    return outcome.winner.settings if outcome.winner else None


def _verdict(outcome: Outcome, is_default: bool) -> str:
    ended = f"It stopped after {outcome.blocks} blocks ({outcome.cost_s / 60:.0f} min): {STOPPED[outcome.stopped]}."
    if outcome.winner is None:
        return ended
    if is_default:
        return f"{ended} The default settings won."
    if outcome.gain is None or outcome.gain_ci95 is None:
        return ended
    low, high = outcome.gain_ci95
    said = f"The winner beside the default: {share(outcome.gain)} (95 % CI {share(low)} to {share(high)})"
    if not outcome.is_better:
        said += "; but the race's own test, which allows for all its settings and looks, is not sure that it is better"
    return f"{ended} {said}. The same blocks chose it, which flatters it: bench verify gives the figure to believe."


def _problem(tune: TuneRun) -> Markup | None:
    return element("p", tune.problem, class_="problem") if tune.problem else None


def _settings(tune: TuneRun, outcome: Outcome) -> Markup:
    """One row a setting that was visited, the best first."""
    visited = [fate for fate in outcome.fates if fate.name != "not visited"]
    if outcome.default not in visited:
        visited.append(outcome.default)
    visited.sort(key=lambda fate: (fate.change is None, -(fate.change or 0.0), fate.name != "winner"))
    scale = _changes_scale(visited)
    rows: list[Sequence[Child]] = [_setting(fate, tune, scale) for fate in visited]
    unseen = outcome.grid - sum(1 for fate in outcome.fates if fate.name != "not visited")
    note = (
        f"{unseen} of {outcome.grid} settings were not visited: what lies between gave no reason to."
        if unseen
        else None
    )
    what = "Decode tokens/s" if tune.plan.objective == "throughput" else f"The score for {tune.plan.objective}"
    caption = f"{what} beside the winner's, reckoned within rounds, with its 95 % interval. ◆ is the winner"
    rest = rows[SETTINGS_SHOWN:]
    return joined(
        _settings_table(caption, rows[:SETTINGS_SHOWN], scale),
        element(
            "details",
            element("summary", f"{len(rest)} more, further behind or without figures"),
            _settings_table("The other settings", rest, scale),
        )
        if rest
        else None,
        element("p", note, class_="note") if note else None,
    )


def _settings_table(caption: str, rows: Sequence[Sequence[Child]], scale: Scale) -> Markup:
    heads = ("Settings", "", "Beside the winner", "Decode tokens/s", "TTFT, ms", "Blocks", "Verdict")
    return table(caption, heads, rows, ("", charts.axis(scale, "%"), "", "", "", "", ""))


def _changes_scale(fates: Sequence[Fate]) -> Scale:
    """In percent. Around the winner, whose change is 0, as far as WORST_SHOWN."""
    values = [0.0]
    for fate in fates:
        if fate.change is not None and fate.ci95 is not None and fate.change > WORST_SHOWN:
            values += [100 * max(fate.change, WORST_SHOWN), *(100 * max(bound, WORST_SHOWN) for bound in fate.ci95)]
    return Scale.around(values)


def _setting(fate: Fate, tune: TuneRun, scale: Scale) -> Sequence[Child]:
    is_default = fate.settings == tune.plan.default
    name = joined(
        *(joined(element("code", f"{knob}={value}", class_="knob"), " ") for knob, value in fate.settings.items),
        badge("default", "plain") if is_default else None,
    )
    shown = fate.figures
    return (
        name,
        _change(fate, scale),
        _beside(fate),
        number(shown.decode_tokens_per_s) if shown else NONE,
        number(shown.ttft_ms) if shown else NONE,
        str(fate.blocks),
        joined(
            badge(fate.name, FATES.get(fate.name, "plain")),
            element("small", f" {fate.reason}") if fate.reason else None,
        ),
    )


def _change(fate: Fate, scale: Scale) -> Markup:
    if fate.change is None or fate.ci95 is None:
        return Markup("")
    low, high = fate.ci95
    estimate = Estimate(100 * fate.change, 100 * low, 100 * high)
    if fate.name == "winner":
        estimate = Estimate(0.0, None, None)
    return charts.point(estimate, scale, fate.name.replace(" ", "-"), mark=0.0)


def _beside(fate: Fate) -> Markup:
    if fate.name == "winner":
        return element("b", "winner")
    if fate.change is None or fate.ci95 is None:
        return NONE
    low, high = fate.ci95
    return joined(element("b", share(fate.change)), below(f"{share(low)} to {share(high)}"))


def _invalid_blocks(tune: TuneRun) -> Markup | None:
    reasons: dict[str, int] = {}
    for block in tune.blocks:
        if block.status != "measured":
            reasons[block.reason] = reasons.get(block.reason, 0) + 1
    if not reasons:
        return None
    rows = [element("li", f"{count} × {reason}") for reason, count in reasons.items()]
    return joined(element("p", "Blocks that do not count:"), element("ul", *rows))


def _history(node: NodeView) -> Markup | None:
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
        charts.history(points, "Decode tokens/s of one stream, p50 with its 95 % interval"),
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
