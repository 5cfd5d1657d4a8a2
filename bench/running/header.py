"""What every run file begins with, whatever was measured: whose it is, when it began, and how it ended."""

from __future__ import annotations

import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from appliance import __version__

FORMAT = 1


class Header(msgspec.Struct, kw_only=True):
    """session: common to all nodes that one command measured. started_at: by the wall clock, and only a label."""

    format: int = FORMAT
    kind: str
    id: str
    session: str
    node: str
    url: str
    bench_version: str
    started_at: str
    status: Literal["running", "complete", "interrupted", "failed"] = "running"
    problem: str = ""
    wall_s: float = 0.0
    fingerprint: dict[str, Any] = {}


LABEL = "%Y%m%dT%H%M%SZ"


def begun_now(kind: str, session: str, node: str, url: str, newest: str = "") -> dict[str, Any]:
    """What a header says of a run that begins; its id begins with the time, so that the newest sorts last.

    newest: the id before it. Where the clock was set back meanwhile, the new one is labelled a second after it.
    """
    label = now = datetime.now(UTC)
    with suppress(ValueError):
        before = datetime.strptime(newest.partition("-")[0], LABEL).replace(tzinfo=UTC)
        label = max(now, before + timedelta(seconds=1))
    return {
        "id": f"{label:{LABEL}}-{kind}-{secrets.token_hex(3)}",
        "session": session,
        "node": node,
        "url": url,
        "bench_version": __version__,
        "started_at": now.isoformat(timespec="seconds"),
    }
