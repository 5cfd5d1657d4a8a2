"""How much the demo measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How long the loop measures: a node's budget for the search, and rounds of old beside new."""

    budget: str = "90s"
    rounds: int = 8
    max_tokens: int = 64
