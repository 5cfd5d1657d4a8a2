"""All nodes tuned at the same time; each alone on itself, and none waits for or fails with another.

Owns: what is common to them, and the end of all by an interruption. Must not know: the command line, what is printed,
the inventory's files.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gevent.event import Event

from bench import roofline
from bench.inventory.tuned_profile import TunedProfile
from bench.knobs import KNOBS
from bench.running import node_facts, runfile
from bench.running.client import Target
from bench.running.ending import Ended
from bench.tuning import block, sitting, tune_file, tuned
from bench.tuning.block import Question
from bench.tuning.meter import Surroundings
from bench.tuning.space import Value
from bench.tuning.tune_file import TuneRun
from bench.tuning.tune_node import NodeTune
from bench.tuning.tuned import Wanted

Tuned = Ended[TuneRun]


@dataclass(frozen=True)
class Tuning:
    """Tunes nodes.

    profiles: those in the inventory.
    """

    wanted: Wanted
    question: Question
    around: Surroundings
    interrupt: Event
    profiles: Mapping[str, TunedProfile] = field(default_factory=dict)

    def tune(self, targets: Sequence[Target], is_resumed: bool = False) -> list[Tuned]:
        """In the order of `targets`. Resumed: each node's newest tune goes on, where that did not come to its end."""
        session = secrets.token_hex(4)

        def begin(target: Target) -> TuneRun:
            if is_resumed:
                return sitting.resumed(target, self.around, tune_file.KIND, TuneRun)
            return self._new(target, session)

        return sitting.on_all(targets, self.around, self.interrupt, begin, NodeTune)

    def _new(self, target: Target, session: str) -> TuneRun:
        """A node's race, planned from what it is and has. Raises: BenchError."""
        node_facts.require_ready(target)
        roofline.measured_once(target)
        facts = node_facts.look(target, "before", 0.0)
        known = self.profiles.get(target.name)
        profile = dict(known.env) if known else {}
        return TuneRun(
            **runfile.begun(tune_file.KIND, session, target, self.around.results),
            question=self.question,
            plan=tuned.plan(self.wanted, facts.node, {**profile, **own_env(target, facts.node)}),
            own_env=profile,
        )


def own_env(target: Target, node: Mapping[str, Any] | None) -> dict[str, Value]:
    """The settings that a node has now, by their names in a profile. One without GET /node shows them by a benchmark.

    Raises: BenchError.
    """
    if node and isinstance(node.get("settings"), Mapping):
        return {name: value for name, value in node["settings"].items() if name in KNOBS}
    return block.ask(target, {}, Question(max_tokens=2)).env
