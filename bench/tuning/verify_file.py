"""What a verification measured: rounds of two blocks, the old profile's and the new one's, and the verdict. Shapes, and
their file, a run file of kind "verify"."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.running import runfile
from bench.running.runfile import RunFileError
from bench.running.samples import FORMAT, Facts
from bench.statistics.comparison import Verdict
from bench.tuning.block import Question
from bench.tuning.blocks import BlockRecord
from bench.tuning.objective import Objective
from bench.tuning.space import Settings

KIND = "verify"


class Round(msgspec.Struct, frozen=True):
    """A block of either arm, in the order that chance gave them. Both blocks count, or neither."""

    old: BlockRecord
    new: BlockRecord

    @property
    def is_valid(self) -> bool:
        return self.old.figures is not None and self.new.figures is not None


class VerifyRun(msgspec.Struct, kw_only=True):
    """One node, verified once.

    old, new: the settings that differ and can be measured. looks: after so many rounds the data are looked at.
    restored: the previous profile was brought back into the inventory. temporary_env: as in a tune.
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
    objective: Objective = "throughput"
    seed: int = 0
    looks: tuple[int, ...]
    old: Settings
    new: Settings
    base_env: dict[str, Any] = {}
    own_env: dict[str, Any] = {}
    temporary_env: dict[str, Any] | None = None
    fingerprint: dict[str, Any] = {}
    before: Facts | None = None
    rounds: list[Round] = []
    verdict: Verdict | None = None
    restored: bool = False

    @property
    def counted(self) -> list[Round]:
        return [one for one in self.rounds if one.is_valid]


def path_of(run: VerifyRun, results: Path) -> Path:
    return results / run.node / f"{run.id}{runfile.SUFFIX}"


def save(run: VerifyRun, results: Path) -> Path:
    """Raises: RunFileError."""
    path = path_of(run, results)
    runfile.write(msgspec.json.encode(run) + b"\n", path)
    return path


def read(path: Path) -> VerifyRun:
    """Raises: RunFileError, NewerFormat."""
    try:
        found = runfile.migrated(msgspec.json.decode(path.read_bytes()), path)
        return msgspec.convert(found, VerifyRun)
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}.") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise RunFileError(f"{path} is no verification of bench, or was changed by hand: {error}.") from error


def newest(results: Path, node: str) -> Path | None:
    """The latest verification of a node."""
    return runfile.newest(results, node, KIND)
