"""All nodes of one command, at the same time; each alone on itself, and none waits for or fails with another.

Owns: what is common to them, and the end of all by an interruption. Must not know: the command line, what is printed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from bench import all_nodes
from bench.running import runfile
from bench.running.client import BenchError, Patience, Target
from bench.running.cooling import Cooling
from bench.running.ending import Ended
from bench.running.lateness import Heartbeat
from bench.running.node_facts import ASK_EVERY_S, READY_WAIT_S, NotReady
from bench.running.node_run import NodeRun, Progress, calibrate, new_run
from bench.running.runfile import RunFileError
from bench.running.samples import KIND, Run, Settings
from bench.running.trace import Calibration

Measured = Ended[Run]


@dataclass
class Session:
    """How nodes are measured: common to all, so that their figures compare."""

    results: Path
    tell: Callable[[Progress], None]
    interrupt: Event
    cooling: Cooling = field(default_factory=Cooling)

    def measure(self, targets: Sequence[Target], settings: Settings) -> list[Measured]:
        """New runs: the same trace for every node, calibrated on the first that answers. In the order of `targets`."""
        calibration, problems = self._calibrate(targets, settings)
        if calibration is None:
            return [Measured(target.name, problem=problems.get(target.name, "interrupted")) for target in targets]
        session = secrets.token_hex(4)
        return self._carry_out(
            {target: new_run(target, session, settings, calibration, self.results) for target in targets}
        )

    def resume(self, targets: Sequence[Target]) -> list[Measured]:
        """Go on with each node's newest run, where that did not come to its end; the others are told as they are."""
        runs: dict[Target, Run] = {}
        ended: dict[str, Measured] = {}
        for target in targets:
            path = runfile.newest(self.results, target.name, KIND)
            try:
                run = None if path is None else runfile.read(path, Run)
            except RunFileError as error:
                ended[target.name] = Measured(target.name, problem=str(error))
                continue
            if run is None:
                problem = f"{target.name} has no run in {self.results}; leave --resume out."
                ended[target.name] = Measured(target.name, problem=problem)
            elif run.status == "complete":
                ended[target.name] = Measured(target.name, run, path)
            else:
                runs[target] = run
        found = {measured.node: measured for measured in self._carry_out(runs)}
        return [found.get(target.name) or ended[target.name] for target in targets]

    def _calibrate(self, targets: Sequence[Target], settings: Settings) -> tuple[Calibration | None, dict[str, str]]:
        """In turns, until one is ready: nobody is to wait for a certain node that loads its model."""
        problems: dict[str, str] = {}
        waiting, ends_at = list(targets), time.monotonic() + READY_WAIT_S
        while waiting and time.monotonic() < ends_at and not self.interrupt.is_set():
            asked, waiting = waiting, []
            for target in asked:
                found = self._calibrated(target, settings)
                if found is None or isinstance(found, Calibration):
                    return found, problems
                problems[target.name] = str(found)
                if isinstance(found, NotReady) and found.is_passing:
                    waiting.append(target)
            self.interrupt.wait(ASK_EVERY_S if waiting else 0)
        return None, problems

    def _calibrated(self, target: Target, settings: Settings) -> Calibration | BenchError | RunFileError | None:
        """None: interrupted."""
        patience = Patience(answer_s=settings.timeout_s)

        def ask() -> Calibration:
            with runfile.locked(self.results, target.name):  # or it would spoil what another bench measures there
                return calibrate(target, settings.seed, settings.prompt_tokens, patience)

        asking = gevent.spawn(_or_error, ask)
        either: list[Any] = [asking, self.interrupt]
        gevent.wait(either, count=1)
        if self.interrupt.is_set():
            asking.kill()
            return None
        found: Calibration | BenchError | RunFileError = asking.get()
        return found

    def _carry_out(self, runs: dict[Target, Run]) -> list[Measured]:
        heartbeat = Heartbeat()

        def one(target: Target) -> Measured:
            return self._one(target, runs[target], heartbeat)

        def failed(target: Target, problem: str) -> Measured:
            return Measured(target.name, problem=problem)

        try:
            found = all_nodes.on_each(list(runs), one, self.interrupt, len(runs) or 1, failed)
        finally:
            heartbeat.stop()
        gone = "interrupted before it began"
        return [each or Measured(target.name, problem=gone) for each, target in zip(found, runs, strict=True)]

    def _one(self, target: Target, run: Run, heartbeat: Heartbeat) -> Measured:
        path = runfile.path_of(run, self.results)
        try:
            with runfile.locked(self.results, target.name):
                node_run = NodeRun(target, run, self.results, heartbeat, self.tell, self.cooling)
                return Measured(target.name, node_run.carry_out(), path, run.problem)
        except RunFileError as error:
            return Measured(target.name, run if run.stages else None, None, str(error))


def _or_error(do: Callable[[], Calibration]) -> Calibration | BenchError | RunFileError:
    """gevent prints what a greenlet raises; an error that is expected is returned."""
    try:
        return do()
    except (BenchError, RunFileError) as error:
        return error
