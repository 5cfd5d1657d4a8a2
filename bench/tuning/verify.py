"""Every node's old profile beside its new one, all nodes at the same time.

Owns: what is compared with what, and that the new one is in force. Must not know: the command line, what is printed.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gevent.event import Event

from bench.inventory.tuned_profile import TunedProfile, is_stale
from bench.knobs import KNOBS
from bench.running import node_facts, runfile
from bench.running.client import BenchError, Target
from bench.running.ending import Ended
from bench.tuning import arms, sitting, verify_file
from bench.tuning.block import Question
from bench.tuning.deploy import Playbook
from bench.tuning.meter import Surroundings, not_in_force
from bench.tuning.objective import Objective
from bench.tuning.space import Value
from bench.tuning.verify_file import VerifyRun
from bench.tuning.verify_node import NodeVerify

Verified = Ended[VerifyRun]


@dataclass(frozen=True)
class Pair:
    """The env of a node's previous profile, and the profile that is deployed."""

    old: Mapping[str, Value]
    profile: TunedProfile

    @property
    def new(self) -> Mapping[str, Value]:
        return self.profile.env


@dataclass(frozen=True)
class Verification:
    """How nodes are verified; common to all. looks: see comparison.py. inventories: as given with -i, for remedies."""

    question: Question
    objective: Objective
    looks: tuple[int, ...]
    seed: int
    with_restarts: bool
    around: Surroundings
    interrupt: Event
    inventories: Sequence[str] = ()

    def verify(self, targets: Sequence[Target], pairs: Mapping[str, Pair], is_resumed: bool = False) -> list[Verified]:
        """In the order of `targets`. Resumed: each node's newest one goes on, where it did not come to its end."""
        session = secrets.token_hex(4)

        def begin(target: Target) -> VerifyRun:
            if is_resumed:
                return sitting.resumed(target, self.around, verify_file.KIND, VerifyRun)
            return self._new(target, pairs[target.name], session)

        return sitting.on_all(targets, self.around, self.interrupt, begin, NodeVerify)

    def _new(self, target: Target, pair: Pair, session: str) -> VerifyRun:
        """Raises: BenchError when the new profile is stale or not in force, and when there is nothing to compare."""
        old, new = arms.arms(target.name, pair.old, pair.new, self.with_restarts)
        node_facts.require_ready(target)
        facts = node_facts.look(target, "before", 0.0)
        if reasons := is_stale(pair.profile, facts.node):
            where = [part for source in self.inventories for part in ("-i", source)]
            tuning = shlex.join(["bench", "tune", *where, "--limit", target.name])
            raise BenchError(f"{target.name}: its profile is stale: {'; '.join(reasons)}. Find another with: {tuning}")
        if problem := not_in_force(pair.new, facts.node):
            deploying = shlex.join(Playbook(self.inventories).command(target.name))
            raise BenchError(f"{target.name}: its profile is not in force: {problem} Deploy it with: {deploying}")
        return VerifyRun(
            **runfile.begun(verify_file.KIND, session, target, self.around.results),
            question=self.question,
            objective=self.objective,
            seed=self.seed,
            looks=self.looks,
            old=old,
            new=new,
            base_env=dict(pair.new),
            own_env=_restarting(pair.new),
        )


def _restarting(env: Mapping[str, Value]) -> dict[str, Any]:
    return {name: value for name, value in env.items() if KNOBS[name].restart == "ollama"}
