"""What a tune found: each setting beside the winner. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from bench.report import charts
from bench.report.markup import Child, Markup, element, joined
from bench.report.parts import NONE, age, badge, below, share, table
from bench.report.scale import Scale
from bench.running.run_table import number
from bench.running.summary import Estimate
from bench.tuning.outcome import Fate, Outcome
from bench.tuning.tune_file import TuneRun

SETTINGS_SHOWN = 12
WORST_SHOWN = -0.30  # a setting that is further behind becomes an arrow, or the others would not be told apart
STOPPED = {
    "sure": "nothing that still matters was undecided",
    "budget": "the budget was spent first, so the winner is the best so far",
    "no candidates": "no settings could be measured within the limits",
}
FATES = {"winner": "good", "tied": "plain", "worse": "bad", "ruled out": "warn", "not measured": "warn"}


def race(tune: TuneRun, now: datetime) -> Markup:
    outcome = tune.outcome
    when = f"Tune {tune.id}, {age(tune.started_at, now)}"
    if outcome is None:
        counted = sum(1 for block in tune.blocks if block.status == "measured")
        said = f"{when}, {tune.status} after {counted} measured blocks. "
        resume = joined(element("code", "bench tune --resume"), " goes on with it.")
        return joined(element("h3", "Settings"), element("p", said, resume), _problem(tune))
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
        return f"{ended} What the node had won."
    if outcome.gain is None or outcome.gain_ci95 is None:
        return ended
    low, high = outcome.gain_ci95
    said = f"The winner beside what the node had: {share(outcome.gain)} (95 % CI {share(low)} to {share(high)})"
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
        badge("as it was", "plain") if is_default else None,
    )
    shown = fate.figures
    return (
        name,
        _change(fate, scale),
        _beside(fate),
        number(shown.decode_tokens_per_s) if shown else NONE,
        number(shown.ttft_ms) if shown else NONE,
        str(fate.blocks),
        joined(badge(fate.name, FATES.get(fate.name, "plain")), below(fate.reason)),
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
