"""What every run file begins with, whatever was measured: whose it is, when it began, and how it ended."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
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


def begun_now(kind: str, session: str, node: str, url: str) -> dict[str, Any]:
    """What a header says of a run that begins; its id begins with the time, so that the newest sorts last."""
    now = datetime.now(UTC)
    return {
        "id": f"{now:%Y%m%dT%H%M%SZ}-{kind}-{secrets.token_hex(3)}",
        "session": session,
        "node": node,
        "url": url,
        "bench_version": __version__,
        "started_at": now.isoformat(timespec="seconds"),
    }
