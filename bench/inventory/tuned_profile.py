"""A node's tuned profile: what it says, on what it rests, and when it is true no longer. Pure.

What a profile may hold is the schema's, so the table of knobs', to say. Must not know: files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bench.knobs import FORMAT

VARIABLE = "tuned_profile"


class Against(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a figure was compared with.

    settings: as "N_CTX=512 N_THREADS=4", or what they are, such as "the defaults".
    median: its own figure. change: of ours to it, as a share, with its confidence interval; n: rounds.
    """

    settings: str
    median: float | None = None
    change: float | None = None
    ci95: tuple[float, float] | None = None
    n: int | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One metric under the chosen settings."""

    median: float
    ci95: tuple[float, float]
    n: int
    against: Against | None = None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Which run chose the settings, when (UTC), and on what; None is not known."""

    run: str
    at: str
    model: str | None = None
    model_digest: str | None = None
    ollama: str | None = None
    appliance: str | None = None
    board: str | None = None
    throttled: str | None = None

    @classmethod
    def of(cls, run: str, at: str, facts: Mapping[str, Any] | None) -> Provenance:
        """facts: what GET /node answered, or None."""
        return cls(run=run, at=at, **basis(facts))


class TunedProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The variable tuned_profile, in the order of the file."""

    format: int = FORMAT
    env: dict[str, int | str]
    measured: dict[str, Measured]
    provenance: Provenance


def basis(facts: Mapping[str, Any] | None) -> dict[str, str | None]:
    """What a profile rests on, by its names in Provenance, out of GET /node's answer."""
    found: Mapping[str, Any] = facts or {}

    def at(part: str, name: str) -> str | None:
        value = (found.get(part) or {}).get(name)
        return None if value is None else str(value)

    return {
        "model": at("model", "name"),
        "model_digest": at("model", "digest"),
        "ollama": at("engine", "version"),
        "appliance": at("appliance", "version"),
        "board": at("board", "name"),
        "throttled": at("throttling", "bits"),
    }


STALE_WITH = {
    "model": "the model",
    "model_digest": "the model's digest",
    "ollama": "Ollama's version",
    "board": "the board",
}


def is_stale(profile: TunedProfile, facts: Mapping[str, Any] | None) -> list[str]:
    """Why what was measured is no longer true of this node, a sentence each; none while it still is.

    What either side does not know is not held against the profile. facts: what GET /node answers now.
    """
    return changes({name: getattr(profile.provenance, name) for name in STALE_WITH}, basis(facts))


def changes(then: Mapping[str, str | None], now: Mapping[str, str | None]) -> list[str]:
    """In what two bases differ that matters to what was measured, a sentence each; the unknown does not."""
    return [
        f"{what} was {then[name]} when it was measured, and is {now[name]} now"
        for name, what in STALE_WITH.items()
        if then[name] is not None and now[name] is not None and then[name] != now[name]
    ]
