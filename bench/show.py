"""The fleet as rows: what each node is, how fast it was measured, and what its profile is worth. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bench.inventory.tuned_profile import STALE_WITH, TunedProfile, basis, is_stale
from bench.knobs import KNOBS
from bench.report.data import BlockSpeed, RunView, found, is_since
from bench.roofline import share
from bench.running.run_table import figure
from bench.running.samples import ClosedLoop
from bench.running.summary import Estimate, Quantity
from bench.tuning.meter import not_in_force

HEADS = ("node", "board", "model", "decode tok/s", "n", "of roofline", "throttled", "profile", "measured")
DAY_S, HOUR_S = 86400.0, 3600.0


@dataclass(frozen=True)
class Row:
    """One node. None is not known.

    decode_tokens_per_s: a stream's, by its newest valid run, under `load`; n: answers. source: what
    measured it; without a run a tune or a verification, and n counts blocks. of_roofline: that, as a share of what the
    memory's bandwidth allows, where it was alone. measured_otherwise: what changed since. throttled: what the board
    reports now or reported since its start. profile_age_s: since it was written; stale: why it is no longer true;
    not_in_force: what the node runs with instead; both nothing where the node does not answer, and nothing newer than
    the profile tells. profile_problem: why the file that should hold the profile holds none.
    """

    node: str
    board: str | None = None
    model: str | None = None
    decode_tokens_per_s: Estimate | None = None
    n: int | None = None
    load: str = ""
    source: str = ""
    measured_otherwise: tuple[str, ...] = ()
    of_roofline: float | None = None
    throttled: tuple[str, ...] | None = None
    profile_age_s: float | None = None
    stale: tuple[str, ...] = ()
    not_in_force: str = ""
    measured_age_s: float | None = None
    problem: str = ""
    profile_problem: str = ""


def row(
    node: str,
    facts: Mapping[str, Any] | None,
    profile: TunedProfile | None,
    run: RunView | BlockSpeed | None,
    now: datetime,
    problem: str = "",
    profile_problem: str = "",
) -> Row:
    """facts: GET /node, now; None where it does not answer: then what it said in its newest run counts.

    run: the newest that may be used, or what a tune or a verification measured.
    """
    then: Mapping[str, Any] = (run.fingerprint.get("node") if run else None) or {}
    said = facts or then
    speed = _speed(run)
    rate = speed.p50 if speed else None
    of_profile = facts or (then if run and profile and is_since(run.started_at, profile) else {})
    in_force = of_profile if facts or isinstance(run, RunView) else {}  # blocks have settings of their own
    return Row(
        node=node,
        board=found(said, "board", "name"),
        model=found(said, "model", "name") or (run.fingerprint.get("model") if run else None),
        decode_tokens_per_s=rate,
        n=speed.n if speed else None,
        load=run.load if isinstance(run, RunView) else "",
        source=("bench run" if isinstance(run, RunView) else run.source) if run and speed else "",
        measured_otherwise=tuple(changed_since(then, facts)) if rate and facts else (),
        of_roofline=share(rate.value, at_the_run(then, said)) if rate and _is_of_one_stream(run) else None,
        throttled=throttled(said),
        profile_age_s=_age_s(profile.provenance.at, now) if profile else None,
        stale=tuple(is_stale(profile, of_profile)) if profile else (),
        not_in_force=not_in_force(profile.env, in_force) if profile else "",
        measured_age_s=_age_s(run.started_at, now) if run else None,
        problem=problem,
        profile_problem=profile_problem,
    )


def _speed(run: RunView | BlockSpeed | None) -> Quantity | None:
    if isinstance(run, BlockSpeed):
        return run.decode_tokens_per_s
    return run.single[1] if run and run.single else None


def _is_of_one_stream(run: RunView | BlockSpeed | None) -> bool:
    return isinstance(run, BlockSpeed) or (run is not None and run.is_of_one_stream)


def at_the_run(then: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the node was when it was measured; its bandwidth by the newest measurement where it had none yet."""
    same_board = found(then, "board", "name") == found(now, "board", "name")
    known = then.get("bandwidth") or (now.get("bandwidth") if same_board else None)
    return {**then, "bandwidth": known}


def changed_since(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Why the node is not what was measured, in words; what either side does not tell is no change."""
    was, is_now = basis(then), basis(now)
    for name, what in STALE_WITH.items():
        if was[name] is not None and is_now[name] is not None and was[name] != is_now[name]:
            yield f"{what} was {was[name]} when its speed was measured, and is {is_now[name]} now"
    before, after = found(then, "settings") or {}, found(now, "settings") or {}
    for name in KNOBS:
        if name in before and name in after and before[name] != after[name]:
            yield f"{name} was {before[name]} when its speed was measured, and is {after[name]} now"


def throttled(facts: Mapping[str, Any]) -> tuple[str, ...] | None:
    """None where the board has no such bits."""
    bits = found(facts, "throttling")
    if not isinstance(bits, Mapping):
        return None
    return tuple(dict.fromkeys([*(bits.get("now") or ()), *(bits.get("since_boot") or ())]))


def table(rows: Sequence[Row]) -> str:
    """The rows as text; what needs more words stands below."""
    cells = [HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    for each in rows:
        lines += [f"{each.node}: its profile is stale: {reason}" for reason in each.stale]
        words = (*each.measured_otherwise, _doubt(each), each.not_in_force, each.profile_problem)
        words = (*words, each.problem.removeprefix(f"{each.node}: "))
        lines += [f"{each.node}: {text}" for text in words if text]
    return "\n".join(lines)


def _doubt(row: Row) -> str:
    if row.load and row.load != str(ClosedLoop(1)):
        return f"its decode speed is that of a stream among others ({row.load}); measure one alone for its roofline"
    if row.source not in ("", "bench run"):
        return f"its decode speed is that of {row.source}'s blocks; `bench run` tells it under load, with latencies"
    if row.of_roofline and row.of_roofline > 1:
        return "it is faster than its memory was measured to be: measure both again"
    return ""


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 2 * HOUR_S:
        return f"{max(0.0, seconds) / 60:.0f} min"
    return f"{seconds / HOUR_S:.0f} h" if seconds < 2 * DAY_S else f"{seconds / DAY_S:.0f} days"


def _cells(row: Row) -> tuple[str, ...]:
    profile = "unreadable" if row.profile_problem else "none"
    if row.profile_age_s is not None:
        words = [age(row.profile_age_s), "stale" if row.stale else "", "not in force" if row.not_in_force else ""]
        profile = ", ".join(word for word in words if word)
    return (
        row.node,
        row.board or "-",
        row.model or "-",
        figure(row.decode_tokens_per_s),
        "-" if row.n is None else str(row.n),
        "-" if row.of_roofline is None else f"{row.of_roofline:.0%}",
        "-" if row.throttled is None else ", ".join(row.throttled).replace("_", " ") or "no",
        profile,
        age(row.measured_age_s),
    )


def _age_s(at: str, now: datetime) -> float | None:
    try:
        then = datetime.fromisoformat(at)
    except ValueError:
        return None
    return (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()
