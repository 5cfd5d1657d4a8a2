"""All nodes tuned at the same time; each alone on itself, and none waits for or fails with another.

Owns: what is common to them, and the end of all by an interruption. Must not know: the command line, what is printed,
the inventory's files.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gevent.event import Event

from appliance import __version__
from bench import all_nodes, roofline
from bench.inventory.tuned_profile import TunedProfile
from bench.knobs import KNOBS
from bench.running import node_facts, runfile
from bench.running.client import BenchError, Target
from bench.running.runfile import RunFileError
from bench.tuning import block, tune_file, tuned
from bench.tuning.block import Question
from bench.tuning.meter import Surroundings
from bench.tuning.space import Value
from bench.tuning.tune_file import TuneRun
from bench.tuning.tune_node import NodeTune
from bench.tuning.tuned import Wanted


@dataclass(frozen=True)
class Tuned:
    """What came of one node: its tune and where that lies, or only the problem."""

    node: str
    run: TuneRun | None = None
    path: Path | None = None
    problem: str = ""


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
        begin: Callable[[Target], TuneRun] = self._resumed if is_resumed else lambda target: self._new(target, session)
        results = all_nodes.on_each(targets, lambda target: self._one(target, begin), self.interrupt)
        gone = "interrupted before it began"
        return [r or Tuned(t.name, problem=f"{t.name}: {gone}") for t, r in zip(targets, results, strict=True)]

    def _one(self, target: Target, begin: Callable[[Target], TuneRun]) -> Tuned:
        try:
            with runfile.locked(self.around.results, target.name):
                run = begin(target)
                path = tune_file.path_of(run, self.around.results)
                if run.status != "complete":
                    NodeTune(target, run, self.around).carry_out()
                return Tuned(target.name, run, path, run.problem)
        except (BenchError, RunFileError) as error:
            return Tuned(target.name, problem=str(error))

    def _new(self, target: Target, session: str) -> TuneRun:
        """A node's race, planned from what it is and has. Raises: BenchError."""
        self._put_back(target)
        node_facts.require_ready(target)
        _measure_bandwidth(target)
        facts = node_facts.look(target, "before", 0.0)
        known = self.profiles.get(target.name)
        profile = dict(known.env) if known else {}
        now = datetime.now(UTC)
        return TuneRun(
            id=f"{now:%Y%m%dT%H%M%SZ}-{tune_file.KIND}-{secrets.token_hex(3)}",
            session=session,
            node=target.name,
            url=target.url,
            bench_version=__version__,
            started_at=now.isoformat(timespec="seconds"),
            question=self.question,
            plan=tuned.plan(self.wanted, facts.node, {**profile, **own_env(target, facts.node)}),
            own_env=profile,
        )

    def _put_back(self, target: Target) -> None:
        """A tune that was killed may have left settings in force that it deployed for measuring. Raises: BenchError."""
        path = tune_file.newest(self.around.results, target.name)
        last = tune_file.read(path) if path else None
        if last is not None and last.temporary_env is not None:
            self.around.deployment.deploy(target.name, None)
            last.temporary_env = None
            tune_file.save(last, self.around.results)

    def _resumed(self, target: Target) -> TuneRun:
        """Raises: BenchError, RunFileError."""
        path = tune_file.newest(self.around.results, target.name)
        if path is None:
            raise BenchError(f"{target.name} has no tune in {self.around.results}; leave --resume out.")
        return tune_file.read(path)


def _measure_bandwidth(target: Target) -> None:
    """Once for as long as the service runs: what `bench show` needs for the roofline. Nothing depends on it here."""
    facts = node_facts.look(target, "before", 0.0).node
    if facts is not None and not facts.get("bandwidth"):
        with suppress(BenchError):
            roofline.bandwidth(target)


def own_env(target: Target, node: Mapping[str, Any] | None) -> dict[str, Value]:
    """The settings that a node has now, by their names in a profile. One without GET /node shows them by a benchmark.

    Raises: BenchError.
    """
    if node and isinstance(node.get("settings"), Mapping):
        return {name: value for name, value in node["settings"].items() if name in KNOBS}
    return block.ask(target, {}, Question(max_tokens=2)).env
