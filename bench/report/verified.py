"""What came of proving profiles: the new one against the old. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from bench.report import charts
from bench.report.data import verdict_of
from bench.report.markup import Child, Markup, element, joined
from bench.report.parts import NONE, age, below, table
from bench.report.scale import Scale
from bench.running.summary import Estimate
from bench.tuning.verify_file import VerifyRun


def verifications(found: Sequence[VerifyRun], now: datetime) -> Markup | None:
    """What came of proving profiles, the newest first."""
    if not found:
        return None
    verdicts = [verdict for run in found if (verdict := verdict_of(run))]
    scale = Scale.around([0.0, *(100 * bound for verdict in verdicts for bound in verdict.ci95)])
    rows = [_verification(run, scale, now) for run in reversed(found)]
    heads = ("Verified", "", "Verdict", "Settings", "Rounds", "Then")
    return joined(
        element("h3", "New profile against old"),
        table(
            "Change with its 95 % interval, from interleaved rounds of both; right of the line is better",
            heads,
            rows,
            ("", charts.axis(scale, "%"), "", "", "", ""),
        ),
    )


def _verification(run: VerifyRun, scale: Scale, now: datetime) -> Sequence[Child]:
    verdict = verdict_of(run)
    drawn: Child = ""
    if verdict:
        low, high = verdict.ci95
        drawn = charts.point(Estimate(100 * verdict.change, 100 * low, 100 * high), scale, "", mark=0.0)
    old, new = run.old.env, run.new.env
    changes = [f"{name} {old.get(name, 'unset')} → {value}" for name, value in new.items() if old.get(name) != value]
    return (
        joined(age(run.started_at, now), below(run.id[-6:])),
        drawn,
        str(verdict) if verdict else joined(f"no verdict yet: {run.status}", below(run.problem)),
        "; ".join(changes) or NONE,
        str(verdict.n if verdict else len(run.counted)),
        "the previous profile was brought back" if run.restored else NONE,
    )
