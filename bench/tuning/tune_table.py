"""What came of tuning, for people: plain text. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.running.run_table import number
from bench.statistics.comparison import ALPHA, Kind, Verdict
from bench.tuning.outcome import Fate, Outcome
from bench.tuning.tune_file import TuneRun

SHOWN = 8  # settings, the best first
STOPPED = {
    "sure": "it was sure",
    "budget": "the budget was spent",
    "no candidates": "no settings could be measured within the limits",
}
HEADS = ("settings", "", "blocks", "tokens/s", "TTFT ms", "beside the winner")


def table(run: TuneRun) -> str:
    """One node: how its race ended, and its best settings in rows."""
    outcome = run.outcome
    if outcome is None:
        return f"{run.node}   tune {run.id}: {run.status} after {len(run.blocks)} blocks"
    lines = [
        f"{run.node}   tune {run.id}: {outcome.blocks} blocks in {outcome.cost_s / 60:.1f} minutes; it stopped because "
        f"{STOPPED[outcome.stopped]}; {_visited(outcome)} of {outcome.grid} settings tried, for {run.plan.objective}"
    ]
    seen = sorted((fate for fate in outcome.fates if fate.figures), key=_order)
    rows = [HEADS, *(_row(fate) for fate in seen[:SHOWN])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if len(seen) > SHOWN:
        lines.append(f"  … and {len(seen) - SHOWN} more, in the file")
    lines += [f"  {fate.settings}: {fate.name}: {fate.reason}" for fate in outcome.fates if fate.reason][:SHOWN]
    if not outcome.is_better:
        return "\n".join(line.rstrip() for line in lines)
    lines.append(f"  beside {outcome.default.settings}: {change(outcome)}; `bench verify` gives the figure to believe")
    return "\n".join(line.rstrip() for line in lines)


def change(outcome: Outcome) -> str:
    """What the winner gains over what the node had, in words; less than nothing where limits forbid what it had."""
    default, winner = outcome.default, outcome.winner
    if winner is not None and winner.settings == default.settings:
        return "none, the settings are the same"
    gain = "unknown" if outcome.gain is None or outcome.gain_ci95 is None else _gain(outcome)
    if default.name == "ruled out":
        return f"{gain}; what the node had is ruled out: {default.reason}"
    if not outcome.is_better:
        return f"{gain}; the race is not sure that it is better"
    return f"{gain}; preferred among equals" if default.name == "tied" else gain


def _gain(outcome: Outcome) -> str:
    assert outcome.gain is not None
    assert outcome.gain_ci95 is not None
    low, high = outcome.gain_ci95
    kind: Kind = "faster" if low > 0 else "slower" if high < 0 else "same"
    return str(Verdict(kind, outcome.gain, outcome.gain_ci95, 0.0, ALPHA, 1, True))


def before_after(runs: Sequence[TuneRun]) -> str:
    """The table of a commit's message: each node's settings before and after, and what that gained."""
    rows = [("node", "before", "tokens/s", "after", "tokens/s", "change")]
    for run in runs:
        outcome = run.outcome
        if outcome is None or outcome.winner is None:
            continue
        was, now = outcome.default, outcome.winner
        rows.append((run.node, str(was.settings), _rate(was), str(now.settings), _rate(now), change(outcome)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def commit_message(runs: Sequence[TuneRun]) -> str:
    names = ", ".join(run.node for run in runs)
    subject = f"inventory: tuned profile of {names}"
    if len(subject) > 72:
        subject = f"inventory: tuned profiles of {len(runs)} nodes"
    ids = "\n".join(f"{run.node}: {run.id}" for run in runs)
    return f"{subject}\n\n{before_after(runs)}\n\nRuns:\n{ids}\n"


def _row(fate: Fate) -> Sequence[str]:
    beside = ""
    if fate.change is not None and fate.ci95 is not None and fate.name != "winner":
        beside = f"{fate.change:+.1%} (95 % CI {fate.ci95[0]:+.1%} to {fate.ci95[1]:+.1%})"
    ttft = number(fate.figures.ttft_ms) if fate.figures else "-"
    return str(fate.settings), fate.name, str(fate.blocks), _rate(fate), ttft, beside


def _rate(fate: Fate) -> str:
    return number(fate.figures.decode_tokens_per_s) if fate.figures else "-"


def _order(fate: Fate) -> tuple[bool, float]:
    return fate.name != "winner", -(fate.change if fate.change is not None else -1.0)


def _visited(outcome: Outcome) -> int:
    return sum(1 for fate in outcome.fates if fate.blocks)
