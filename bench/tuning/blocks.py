"""What files of tunes and verifications share: their header, and one measured block with all that is known of it."""

from __future__ import annotations

from typing import Any

import msgspec

from bench.running.header import Header
from bench.running.samples import Facts
from bench.tuning.block import Question, Ran
from bench.tuning.objective import Figures
from bench.tuning.outcome import Block, Status
from bench.tuning.space import Settings


class BlockRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`facts`: the node right after it; before it, the block before has them. `during`: while it generated."""

    settings: Settings
    status: Status
    began_s: float
    cost_s: float
    figures: Figures | None = None
    reason: str = ""
    streams: int = 1
    samples: list[Ran] = []
    facts: Facts | None = None
    during: list[Facts] = []

    @property
    def block(self) -> Block:
        return Block(self.settings, self.status, self.cost_s, self.figures, self.reason)


class BlockRun(Header, kw_only=True):
    """`temporary_env`: settings that are deployed for measuring; None when the inventory's own are in force."""

    question: Question
    temporary_env: dict[str, Any] | None = None
    before: Facts | None = None
