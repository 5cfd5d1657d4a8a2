"""A tune's or a verification's sitting on a node, from its first block to its last write, and such sittings on all.

Owns: that the node is given back what it had, and that the file is true, however it ends. Must not know: which blocks
are measured, and what for; the inventory's files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gevent.event import Event

from bench import all_nodes
from bench.running import ending, node_facts, runfile
from bench.running.client import BenchError, Target
from bench.running.ending import Ended
from bench.running.node_run import Progress
from bench.running.runfile import RunFileError
from bench.running.saving import Saving
from bench.tuning import tune_file, verify_file
from bench.tuning.blocks import BlockRun
from bench.tuning.meter import InForce, Meter, Surroundings

CHECKPOINT_S = 5.0
KINDS: tuple[tuple[str, type[BlockRun]], ...] = (
    (tune_file.KIND, tune_file.TuneRun),
    (verify_file.KIND, verify_file.VerifyRun),
)

R = TypeVar("R", bound=BlockRun)


class Sitting:
    """Carries one run out, or on; what it measures, a subclass says."""

    def __init__(self, target: Target, run: BlockRun, around: Surroundings, in_force: InForce) -> None:
        self._run, self._around, self._in_force = run, around, in_force
        self._began_at = around.clock() - run.wall_s
        self._saving = Saving(run, around.results, CHECKPOINT_S, around.clock)
        self._meter = Meter(target, around, run.question, self._now_s, in_force, self._save)
        self._unwritten: RunFileError | None = None

    def carry_out(self) -> None:
        """Measure until the end, an interruption or a failure; the run's status and problem say which.

        The node is given back what it had, whatever happened. Raises: RunFileError when the file cannot be written.
        """
        self._save()
        try:
            with ending.told_in(self._run):
                self._begin()
                self._measure()
        except Exception as error:
            self._run.status, self._run.problem = "failed", f"{type(error).__name__}: {error}"
            raise
        finally:
            ending.shielded(self._close)
        if self._unwritten is not None:
            raise self._unwritten

    def _begin(self) -> None:
        """Raises: BenchError."""
        looked = self._meter.begin()
        if self._run.before is not None:
            node_facts.require_unchanged(self._run.node, self._run.before.node, looked.node)
        self._run.before = self._run.before or looked
        self._run.fingerprint = self._run.fingerprint or node_facts.fingerprint(looked)

    def _measure(self) -> None:
        """Raises: BenchError, RunFileError, Interrupted."""
        raise NotImplementedError

    def _close(self) -> None:
        try:
            self._meter.put_back()
        except Exception as error:  # nothing may keep the file from telling of it
            said = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
            self._run.status, self._run.problem = "failed", said
        try:
            self._save()
        except RunFileError as error:
            self._unwritten = error

    def _checkpoint(self) -> None:
        """Have the file written, now and then."""
        if self._saving.is_due:
            self._note()
            self._saving.soon()

    def _save(self) -> None:
        """Raises: RunFileError, which also says what is wrong besides."""
        self._note()
        try:
            self._saving.now()
        except RunFileError as error:
            besides = self._run.problem if str(error) not in self._run.problem else ""
            raise RunFileError(" ".join(part for part in (besides, str(error)) if part)) from error

    def _note(self) -> None:
        self._run.wall_s, self._run.temporary_env = round(self._now_s(), 3), self._in_force.temporary

    def _now_s(self) -> float:
        return self._around.clock() - self._began_at


def on_all(
    targets: Sequence[Target],
    around: Surroundings,
    interrupt: Event,
    begin: Callable[[Target], R],
    sitting: Callable[[Target, R, Surroundings], Sitting],
) -> list[Ended[R]]:
    """Begin a run on each node, or take one that goes on, and carry it out. In the order of `targets`."""

    def one(target: Target) -> Ended[R]:
        run = None
        try:
            with runfile.locked(around.results, target.name):
                put_back_leftovers(target, around)
                run = begin(target)
                if run.status != "complete":
                    sitting(target, run, around).carry_out()
                return Ended(target.name, run, runfile.path_of(run, around.results), run.problem)
        except (BenchError, RunFileError) as error:
            return Ended(target.name, run, None, str(error))

    def failed(target: Target, problem: str) -> Ended[R]:
        return Ended(target.name, problem=problem)

    results = all_nodes.on_each(targets, one, interrupt, failed=failed)
    gone = "interrupted before it began"
    return [r or Ended(t.name, problem=f"{t.name}: {gone}") for t, r in zip(targets, results, strict=True)]


def resumed(target: Target, around: Surroundings, kind: str, shape: type[R]) -> R:
    """The node's newest run of this kind. Raises: BenchError, RunFileError."""
    path = runfile.newest(around.results, target.name, kind)
    if path is None:
        raise BenchError(f"{target.name} has no run of `bench {kind}` in {around.results}; leave --resume out.")
    return runfile.read(path, shape)


def leftovers(results: Path, node: str) -> list[BlockRun]:
    """What was killed may have left settings in force that it deployed for measuring, or was just about to deploy.

    Raises: RunFileError.
    """
    paths = [(runfile.newest(results, node, kind), shape) for kind, shape in KINDS]
    found = [runfile.read(path, shape) for path, shape in paths if path]
    return [run for run in found if run.temporary_env is not None]


def put_back_leftovers(target: Target, around: Surroundings) -> None:
    """Raises: BenchError, RunFileError."""
    for last in leftovers(around.results, target.name):
        around.tell(Progress(target.name, "putting back what a killed bench left", 0, 1, unit="deployment"))
        around.deployment.deploy(target.name, None)
        last.temporary_env = None
        runfile.save(last, around.results)
