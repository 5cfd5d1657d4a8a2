"""What a tune measured: its plan, every block with its samples, and how it ended. Its shape in a run file.

A race's whole state follows from plan and blocks, so this is also what `--resume` needs, and whatever kills a tune
leaves a file from which it goes on.
"""

from __future__ import annotations

from typing import Any

from msgspec import field

from bench.inventory.tuned_profile import TunedProfile
from bench.tuning.blocks import BlockRecord, BlockRun
from bench.tuning.outcome import Outcome, Plan

KIND = "tune"


class TuneRun(BlockRun, kw_only=True):
    """One node, tuned once.

    own_env: the env of the node's profile in the inventory when it began.
    profile: what the outcome speaks for, whether it was written or not.
    """

    kind: str = KIND
    plan: Plan
    own_env: dict[str, Any] = field(default_factory=dict)
    blocks: list[BlockRecord] = field(default_factory=list)
    outcome: Outcome | None = None
    profile: TunedProfile | None = None
