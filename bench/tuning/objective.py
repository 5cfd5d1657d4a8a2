"""What a tuner wants: figures of a block, the objective that orders them, and the limits that rule settings out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.tuning.space import Settings

Objective = Literal["throughput", "latency", "balanced"]
ANSWER_TOKENS = 128  # the answer whose latency counts: a usual MAX_TOKENS
TTFT_REPEATS = 2  # blocks that must all miss the limit: a single one may have been unlucky
TTFT_LUCK = 1.4  # by so much at most


@dataclass(frozen=True)
class Figures:
    """What one block showed.

    decode_tokens_per_s: of the node, all its streams together. tpot_ms: of one stream. memory_mib: of the engine.
    """

    decode_tokens_per_s: float
    ttft_ms: float
    tpot_ms: float
    memory_mib: float = 0.0


@dataclass(frozen=True)
class Limits:
    """None: no limit. max_memory_mib: the node's memory minus the headroom that is to stay free."""

    min_ctx: int | None = None
    max_ttft_ms: float | None = None
    max_memory_mib: float | None = None

    def admits(self, settings: Settings) -> bool:
        """Whether these settings may be measured at all."""
        context = settings.env.get("N_CTX")
        return self.min_ctx is None or not isinstance(context, int) or context >= self.min_ctx

    def broken_by(self, blocks: Sequence[Figures]) -> str | None:
        """Why settings with these blocks are ruled out for good, or None.

        1. Memory hardly varies: one block above the limit is enough.
        2. TTFT does: TTFT_REPEATS blocks or more, all of them above.
        """
        most = max((figures.memory_mib for figures in blocks), default=0.0)
        if self.max_memory_mib is not None and most > self.max_memory_mib:
            return f"takes {most:.0f} MiB of memory, and {self.max_memory_mib:.0f} MiB are allowed"
        least = min((figures.ttft_ms for figures in blocks), default=0.0)
        if self.max_ttft_ms is not None and len(blocks) >= TTFT_REPEATS and least > self.max_ttft_ms:
            return f"TTFT was {least:.0f} ms at best, and {self.max_ttft_ms:.0f} ms are allowed"
        return None

    def may_yet_be_met_by(self, blocks: Sequence[Figures]) -> bool:
        """Whether too few blocks missed the limit, and too narrowly, to say so for good."""
        if self.max_ttft_ms is None or len(blocks) >= TTFT_REPEATS or self.are_met_by(blocks):
            return False
        return min(figures.ttft_ms for figures in blocks) <= self.max_ttft_ms * TTFT_LUCK

    def are_met_by(self, blocks: Sequence[Figures]) -> bool:
        """Whether these settings may win: not ruled out, and their median TTFT is within the limit."""
        if self.broken_by(blocks):
            return False
        return self.max_ttft_ms is None or median(figures.ttft_ms for figures in blocks) <= self.max_ttft_ms


def score(figures: Figures, objective: Objective) -> float:
    """The figure that is raced for, as a logarithm, so that differences are shares.

    throughput: decode tokens/s of the node. latency: of an answer of ANSWER_TOKENS, TTFT and the rest at TPOT, less is
    better. balanced: the mean of the two, so that 1 % of the one is worth 1 % of the other.
    """
    throughput = math.log(figures.decode_tokens_per_s)
    latency = -math.log(figures.ttft_ms + (ANSWER_TOKENS - 1) * figures.tpot_ms)
    return {"throughput": throughput, "latency": latency, "balanced": (throughput + latency) / 2}[objective]
