"""All nodes tuned at the same time; each alone on itself, and none waits for or fails with another.

Owns: what is common to them, and the end of all by an interruption. Must not know: the command line, what is printed,
the inventory's files.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool

from appliance import __version__
from bench import block, node_facts, runfile, tune_file, tuned
from bench.block import Question
from bench.client import BenchError, Target
from bench.knobs import KNOBS
from bench.meter import Surroundings
from bench.node_run import Interrupted
from bench.profile import TunedProfile
from bench.runfile import RunFileError
from bench.space import Value
from bench.tune_file import TuneRun
from bench.tune_node import NodeTune
from bench.tuned import Wanted

AT_ONCE = 256  # nodes; a controller holds some sockets and files for each


@dataclass(frozen=True)
class Tuned:
    """What came of one node: its tune and where that lies, or only the problem."""

    node: str
    run: TuneRun | None = None
    path: Path | None = None
    problem: str = ""


@dataclass(frozen=True)
class Fleet:
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
        session, pool = secrets.token_hex(4), Pool(AT_ONCE)
        begin: Callable[[Target], TuneRun] = self._resumed if is_resumed else lambda target: self._new(target, session)
        jobs: list[gevent.Greenlet[..., Tuned]] = []
        stopper = gevent.spawn(self._stop_when_interrupted, jobs)
        try:
            for target in targets:
                if not self.interrupt.is_set():
                    jobs.append(pool.spawn(self._one, target, begin))
            pool.join()
        finally:
            stopper.kill()
        found = {result.node: result for job in jobs if (result := _result(job)) is not None}
        return [found.get(t.name) or Tuned(t.name, problem=f"{t.name}: interrupted before it began") for t in targets]

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
        node_facts.require_ready(target)
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

    def _resumed(self, target: Target) -> TuneRun:
        """Raises: BenchError, RunFileError."""
        path = tune_file.newest(self.around.results, target.name)
        if path is None:
            raise BenchError(f"{target.name} has no tune in {self.around.results}; leave --resume out.")
        return tune_file.read(path)

    def _stop_when_interrupted(self, jobs: Sequence[gevent.Greenlet[..., Tuned]]) -> None:
        self.interrupt.wait()
        gevent.killall(list(jobs), Interrupted, block=False)


def own_env(target: Target, node: Mapping[str, Any] | None) -> dict[str, Value]:
    """The settings that a node has now, by their names in a profile. One without GET /node shows them by a benchmark.

    Raises: BenchError.
    """
    if node and isinstance(node.get("settings"), Mapping):
        return {name: value for name, value in node["settings"].items() if name in KNOBS}
    return block.ask(target, {}, Question(max_tokens=2)).env


def _result(job: gevent.Greenlet[..., Tuned]) -> Tuned | None:
    """None of one that an interruption ended before it had anything to keep."""
    if job.exception is not None:
        raise job.exception
    return job.value if isinstance(job.value, Tuned) else None
