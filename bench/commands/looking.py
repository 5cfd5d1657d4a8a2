"""What `bench show` and `bench doctor` look at: each node now, its profile and its newest usable run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from gevent.event import Event

from bench import all_nodes
from bench.commands.nodes import Chosen
from bench.inventory.tuned_profile import TunedProfile
from bench.report.data import BlockSpeed, RunView
from bench.running.client import BenchError, Patience, Target, get
from bench.running.newest_run import newest_blocks, newest_usable

PATIENCE = Patience(connect_s=5.0, answer_s=15.0, silence_s=15.0)


@dataclass(frozen=True)
class Seen:
    """One node. facts: GET /node; None where it does not answer, for `problem`, or was not asked.

    blocks: of a tune or a verification, where no run may be used. profile_problem: why the file that should hold its
    profile holds none.
    """

    name: str
    facts: Mapping[str, Any] | None
    profile: TunedProfile | None
    run: RunView | None
    problem: str = ""
    blocks: BlockSpeed | None = None
    profile_problem: str = ""


def look(chosen: Chosen, is_asked: bool = True) -> list[Seen]:
    """All nodes, at the same time; those that the inventory has a problem with come last."""
    profiles, broken = chosen.read_profiles()

    def one(target: Target) -> tuple[Mapping[str, Any] | None, str]:
        try:
            return (facts_of(target) if is_asked else None), ""
        except BenchError as error:
            return None, str(error)

    told = all_nodes.on_each(chosen.targets, one, Event())
    seen = []
    for target, answer in zip(chosen.targets, told, strict=True):
        facts, problem = answer or (None, "interrupted")
        one_seen = _seen(chosen, target.name, facts, profiles.get(target.name), problem)
        seen.append(replace(one_seen, profile_problem=broken.get(target.name, "")))
    return seen + [_seen(chosen, name, None, None, problem) for name, problem in chosen.problems.items()]


def _seen(
    chosen: Chosen, name: str, facts: Mapping[str, Any] | None, profile: TunedProfile | None, problem: str
) -> Seen:
    run = newest_usable(chosen.results, name)
    return Seen(name, facts, profile, run, problem, None if run else newest_blocks(chosen.results, name))


def facts_of(target: Target) -> Mapping[str, Any]:
    """Raises: BenchError, with the remedy where there is one."""
    status, body = get(target, "/node", PATIENCE)
    if status != 200:
        raise BenchError(f"{target.name}: GET {target.url}/node answers {status}; upgrade its appliance.")
    try:
        facts: Mapping[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BenchError(f"{target.name}: GET {target.url}/node is what no appliance sends: {error}.") from error
    return facts
