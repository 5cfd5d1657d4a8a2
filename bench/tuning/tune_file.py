"""What a tune measured: its plan, every block with its samples, and how it ended. Shapes, and their file.

The file is a run file (bench/running/runfile.py) of kind "tune". A race's whole state follows from plan and blocks, so
this is also what `--resume` needs, and whatever kills a tune leaves a file from which it goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.inventory.tuned_profile import TunedProfile
from bench.running import runfile
from bench.running.runfile import RunFileError
from bench.running.samples import FORMAT, Facts
from bench.tuning.block import Question
from bench.tuning.blocks import BlockRecord
from bench.tuning.racing import Outcome, Plan

KIND = "tune"


class TuneRun(msgspec.Struct, kw_only=True):
    """One node, tuned once. `session` is common to all nodes that one command tuned.

    own_env: the env of the node's profile in the inventory when it began.
    temporary_env: settings that are deployed for measuring; None when the inventory's own are in force.
    profile: what the outcome speaks for, whether it was written or not.
    """

    format: int = FORMAT
    kind: str = KIND
    id: str
    session: str
    node: str
    url: str
    bench_version: str
    started_at: str
    status: Literal["running", "complete", "interrupted", "failed"] = "running"
    problem: str = ""
    wall_s: float = 0.0
    question: Question
    plan: Plan
    fingerprint: dict[str, Any] = {}
    own_env: dict[str, Any] = {}
    temporary_env: dict[str, Any] | None = None
    before: Facts | None = None
    blocks: list[BlockRecord] = []
    outcome: Outcome | None = None
    profile: TunedProfile | None = None


def path_of(run: TuneRun, results: Path) -> Path:
    return results / run.node / f"{run.id}{runfile.SUFFIX}"


def save(run: TuneRun, results: Path) -> Path:
    """Raises: RunFileError."""
    path = path_of(run, results)
    runfile.write(msgspec.json.encode(run) + b"\n", path)
    return path


def read(path: Path) -> TuneRun:
    """Raises: RunFileError, NewerFormat."""
    try:
        found = runfile.migrated(msgspec.json.decode(path.read_bytes()), path)
        return msgspec.convert(found, TuneRun)
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}.") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise RunFileError(f"{path} is no tune of bench, or was changed by hand: {error}.") from error


def newest(results: Path, node: str) -> Path | None:
    """The latest tune of a node."""
    return runfile.newest(results, node, KIND)
