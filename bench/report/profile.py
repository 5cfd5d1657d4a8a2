"""A node's profile as a report tells of it: how old, in force or not, stale or not. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.inventory.tuned_profile import TunedProfile, is_stale
from bench.report.data import NodeView, is_since, sound, verdict_of
from bench.statistics.comparison import Verdict


@dataclass(frozen=True)
class ProfileView:
    """is_in_force: as the node itself said when it was last looked at; None where it did not say, or not since the
    profile was found or brought back. stale: why it is, if it is known to be.

    is_proposal: it comes from the newest tune, and no inventory has it. proof: what its newest verification said.
    """

    at: str
    is_in_force: bool | None
    stale: tuple[str, ...]
    is_proposal: bool
    proof: Verdict | None


def profile_of(node: NodeView) -> ProfileView | None:
    """The inventory's; where that has none, what the newest tune speaks for; None where there is neither."""
    proposed = [tune.profile for tune in node.tunes if tune.profile]
    profile = node.profile or next(iter(proposed[-1:]), None)
    if profile is None:
        return None
    looks = [(at, facts) for at, facts in _looks(node) if is_since(at, profile)]
    newest = looks[-1][1] if looks else None
    restored_at = max((run.started_at for run in node.verifications if run.restored), default="")
    told = [facts["settings"] for at, facts in looks if at > restored_at and "settings" in facts]
    in_force = None
    if told and (known := [name for name in profile.env if name in told[-1]]):
        in_force = all(told[-1][name] == profile.env[name] for name in known)
    stale = tuple(is_stale(profile, newest))
    return ProfileView(profile.provenance.at, in_force, stale, node.profile is None, _proof(node, profile))


def _looks(node: NodeView) -> Iterator[tuple[str, dict[str, Any]]]:
    """When the node was looked at before anything was measured, from the oldest on, and what it said."""
    looks = [(run.started_at, run.fingerprint.get("node")) for run in node.runs]
    looks += [(run.started_at, run.before.node) for run in (*node.tunes, *node.verifications) if run.before]
    for at, facts in sorted(looks, key=lambda look: look[0]):
        if said := sound(facts):
            yield at, said


def _proof(node: NodeView, profile: TunedProfile) -> Verdict | None:
    """Of these settings, since they were found; a verification names only those that differ from the old ones."""
    proofs = [run for run in node.verifications if is_since(run.started_at, profile) and verdict_of(run)]
    return next((verdict_of(run) for run in reversed(proofs) if run.new.env.items() <= profile.env.items()), None)
