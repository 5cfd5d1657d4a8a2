"""What a verification measured: rounds of two blocks, old profile and new, and the verdict. Its shape in a run file."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

from bench.statistics.comparison import Verdict
from bench.tuning.blocks import BlockRecord, BlockRun
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


class VerifyRun(BlockRun, kw_only=True):
    """One node, verified once.

    old, new: the settings that differ and can be measured. looks: after so many rounds the data are looked at.
    base_env: the env of the deployed profile. own_env: those of it that need a restart.
    restored: the previous profile was brought back into the inventory.
    """

    kind: str = KIND
    objective: Objective = "throughput"
    seed: int = 0
    looks: tuple[int, ...]
    old: Settings
    new: Settings
    base_env: dict[str, Any] = field(default_factory=dict)
    own_env: dict[str, Any] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    verdict: Verdict | None = None
    restored: bool = False

    @property
    def counted(self) -> list[Round]:
        return [one for one in self.rounds if one.is_valid]
