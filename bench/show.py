"""The fleet as rows: what each node is, how fast it was measured, and what its profile is worth. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bench.inventory.tuned_profile import TunedProfile, is_stale
from bench.report.data import RunView, found
from bench.roofline import share
from bench.running.run_table import figure
from bench.running.summary import Estimate
from bench.tuning.meter import not_in_force

HEADS = ("node", "board", "model", "decode tok/s", "n", "of roofline", "throttled", "profile", "measured")
DAY_S, HOUR_S = 86400.0, 3600.0


@dataclass(frozen=True)
class Row:
    """One node. None is not known.

    decode_tokens_per_s: of one stream, by its newest valid run; n: answers. of_roofline: that, as a share of what the
    memory's bandwidth allows. throttled: what the board reports now or reported since its start. profile_age_s: since
    it was written; stale: why it is no longer true; not_in_force: what the node runs with instead.
    """

    node: str
    board: str | None = None
    model: str | None = None
    decode_tokens_per_s: Estimate | None = None
    n: int | None = None
    of_roofline: float | None = None
    throttled: tuple[str, ...] | None = None
    profile_age_s: float | None = None
    stale: tuple[str, ...] = ()
    not_in_force: str = ""
    measured_age_s: float | None = None
    problem: str = ""


def row(
    node: str,
    facts: Mapping[str, Any] | None,
    profile: TunedProfile | None,
    run: RunView | None,
    now: datetime,
    problem: str = "",
) -> Row:
    """facts: GET /node, now; None where it does not answer: then what it said in its newest run counts.

    run: the newest that may be used.
    """
    said = dict(facts) if facts else (run.fingerprint.get("node") if run else None) or {}
    single = run.single if run else None
    rate = single[1].p50 if single else None
    return Row(
        node=node,
        board=found(said, "board", "name"),
        model=found(said, "model", "name") or (run.fingerprint.get("model") if run else None),
        decode_tokens_per_s=rate,
        n=single[1].n if single else None,
        of_roofline=share(rate.value if rate else None, said),
        throttled=throttled(said),
        profile_age_s=_age_s(profile.provenance.at, now) if profile else None,
        stale=tuple(is_stale(profile, said)) if profile else (),
        not_in_force=not_in_force(profile.env, said) if profile else "",
        measured_age_s=_age_s(run.started_at, now) if run else None,
        problem=problem,
    )


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
        words = (each.not_in_force, each.problem.removeprefix(f"{each.node}: "))
        lines += [f"{each.node}: {text}" for text in words if text]
    return "\n".join(lines)


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 2 * HOUR_S:
        return f"{max(0.0, seconds) / 60:.0f} min"
    return f"{seconds / HOUR_S:.0f} h" if seconds < 2 * DAY_S else f"{seconds / DAY_S:.0f} days"


def _cells(row: Row) -> tuple[str, ...]:
    profile = "none"
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
