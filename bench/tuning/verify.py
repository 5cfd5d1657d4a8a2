"""Every node's old profile beside its new one, all nodes at the same time.

Owns: what is compared with what, and that the new one is in force. Must not know: the command line, what is printed.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gevent.event import Event

from appliance import __version__
from bench import all_nodes
from bench.knobs import KNOBS
from bench.running import node_facts, runfile
from bench.running.client import BenchError, Target
from bench.running.runfile import RunFileError
from bench.tuning import arms, verify_file
from bench.tuning.block import Question
from bench.tuning.meter import Surroundings, not_in_force
from bench.tuning.objective import Objective
from bench.tuning.space import Value
from bench.tuning.verify_file import VerifyRun
from bench.tuning.verify_node import NodeVerify


@dataclass(frozen=True)
class Pair:
    """The env of a node's previous profile and of the one that is deployed."""

    old: Mapping[str, Value]
    new: Mapping[str, Value]


@dataclass(frozen=True)
class Verified:
    """What came of one node: its verification and where that lies, or only the problem."""

    node: str
    run: VerifyRun | None = None
    path: Path | None = None
    problem: str = ""


@dataclass(frozen=True)
class Verification:
    """How nodes are verified; common to all. looks: see comparison.py."""

    question: Question
    objective: Objective
    looks: tuple[int, ...]
    seed: int
    with_restarts: bool
    around: Surroundings
    interrupt: Event

    def verify(self, targets: Sequence[Target], pairs: Mapping[str, Pair], is_resumed: bool = False) -> list[Verified]:
        """In the order of `targets`. Resumed: each node's newest one goes on, where it did not come to its end."""
        session = secrets.token_hex(4)

        def one(target: Target) -> Verified:
            return self._one(target, None if is_resumed else pairs[target.name], session)

        results = all_nodes.on_each(targets, one, self.interrupt)
        gone = "interrupted before it began"
        return [r or Verified(t.name, problem=f"{t.name}: {gone}") for t, r in zip(targets, results, strict=True)]

    def _one(self, target: Target, pair: Pair | None, session: str) -> Verified:
        try:
            with runfile.locked(self.around.results, target.name):
                run = self._resumed(target) if pair is None else self._new(target, pair, session)
                if run.status != "complete":
                    NodeVerify(target, run, self.around).carry_out()
                return Verified(target.name, run, verify_file.path_of(run, self.around.results), run.problem)
        except (BenchError, RunFileError) as error:
            return Verified(target.name, problem=str(error))

    def _new(self, target: Target, pair: Pair, session: str) -> VerifyRun:
        """Raises: BenchError when the new profile is not in force, and when there is nothing to compare."""
        old, new = arms.arms(target.name, pair.old, pair.new, self.with_restarts)
        node_facts.require_ready(target)
        facts = node_facts.look(target, "before", 0.0)
        if problem := not_in_force(pair.new, facts.node):
            raise BenchError(
                f"{target.name}: its profile is not in force: {problem} Deploy it with: ansible-playbook "
                f"ansible/profile.yml --limit {target.name},localhost"
            )
        now = datetime.now(UTC)
        return VerifyRun(
            id=f"{now:%Y%m%dT%H%M%SZ}-{verify_file.KIND}-{secrets.token_hex(3)}",
            session=session,
            node=target.name,
            url=target.url,
            bench_version=__version__,
            started_at=now.isoformat(timespec="seconds"),
            question=self.question,
            objective=self.objective,
            seed=self.seed,
            looks=self.looks,
            old=old,
            new=new,
            base_env=dict(pair.new),
            own_env=_restarting(pair.new),
        )

    def _resumed(self, target: Target) -> VerifyRun:
        """Raises: BenchError, RunFileError."""
        path = verify_file.newest(self.around.results, target.name)
        if path is None:
            raise BenchError(f"{target.name} has no verification in {self.around.results}; leave --resume out.")
        return verify_file.read(path)


def _restarting(env: Mapping[str, Value]) -> dict[str, Any]:
    return {name: value for name, value in env.items() if KNOBS[name].restart == "ollama"}
