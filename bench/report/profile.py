"""A node's profile as a report tells of it: how old, in force or not, stale or not. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from bench.inventory.tuned_profile import TunedProfile, is_stale
from bench.report.data import NodeView
from bench.statistics.comparison import Verdict


@dataclass(frozen=True)
class ProfileView:
    """is_in_force: as the node itself said in its newest run; None where it did not say. stale: why it is, if it is.

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
    run = node.runs[-1] if node.runs else None
    facts = run.fingerprint.get("node") if run else None
    in_force = None
    if run and (known := [name for name in profile.env if name in run.settings]):
        in_force = all(run.settings[name] == profile.env[name] for name in known)
    stale = is_stale(profile, facts if isinstance(facts, dict) else None)
    return ProfileView(profile.provenance.at, in_force, tuple(stale), node.profile is None, _proof(node, profile))


def _proof(node: NodeView, profile: TunedProfile) -> Verdict | None:
    """Of these settings, since they were found; a verification names only those that differ from the old ones."""
    since, env = profile.provenance.at[:19], profile.env
    proofs = [run for run in node.verifications if run.started_at[:19] >= since and run.verdict]
    return next((run.verdict for run in reversed(proofs) if run.new.env.items() <= env.items()), None)
