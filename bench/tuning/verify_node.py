"""One node, verified: blocks of the old and the new profile in interleaved rounds, until a look decides.

Owns one verification from its first block to its last write. Must not know: other nodes, the inventory's files.
"""

from __future__ import annotations

from pathlib import Path

import gevent

from bench.running import node_facts
from bench.running.client import BenchError, Target
from bench.running.node_run import Interrupted, Progress
from bench.running.runfile import RunFileError
from bench.tuning import arms, verify_file
from bench.tuning.meter import InForce, Meter, Surroundings, streams_of
from bench.tuning.verify_file import Round, VerifyRun

MOST_INVALID = 8  # rounds that do not count, before a node is given up


class Unmeasurable(BenchError):
    """An arm does not run, or nothing that is measured counts."""


class NodeVerify:
    """Carries one verification out, or on."""

    def __init__(self, target: Target, run: VerifyRun, around: Surroundings) -> None:
        self.run = run
        self._around = around
        self._began_at = around.clock() - run.wall_s
        self._in_force = InForce(run.base_env, run.own_env, run.temporary_env)
        self._meter = Meter(target, around, run.question, self._now_s, self._in_force, self._save)

    def carry_out(self) -> VerifyRun:
        """Measure until the verdict, an interruption or a failure.

        The node is given back what it had, whatever happened. Raises: RunFileError when the file cannot be written.
        """
        run = self.run
        run.status, run.problem = "running", ""
        self._save()
        try:
            self._measure()
            run.status = "complete"
        except Interrupted:
            run.status, run.problem = "interrupted", "interrupted; --resume goes on with it"
        except BenchError as error:
            run.status, run.problem = "failed", str(error)
        try:
            self._meter.put_back()
        except BenchError as error:
            run.status, run.problem = "failed", str(error)
        self._save()
        return run

    def _measure(self) -> None:
        run = self.run
        looked = self._meter.begin()
        run.before = run.before or looked
        run.fingerprint = run.fingerprint or node_facts.fingerprint(looked)
        run.verdict = arms.verdict(run)
        while run.verdict is None or not run.verdict.is_final:
            self._tell()
            run.rounds.append(self._round(len(run.rounds)))
            self._require_sense()
            run.verdict = arms.verdict(run)
            self._save()

    def _round(self, number: int) -> Round:
        run = self.run
        first, second = (run.old, run.new) if arms.is_old_first(run, number) else (run.new, run.old)
        blocks = {
            settings: self._meter.block(settings, streams_of(settings, run.objective)) for settings in (first, second)
        }
        return Round(blocks[run.old], blocks[run.new])

    def _require_sense(self) -> None:
        """Raises: Unmeasurable when the engine refuses an arm, or too many rounds do not count."""
        last = self.run.rounds[-1]
        for arm, block in (("old", last.old), ("new", last.new)):
            if block.status == "failed":
                raise Unmeasurable(f"{self.run.node}: the {arm} profile does not run here: {block.reason}")
        if len(self.run.rounds) - len(self.run.counted) > MOST_INVALID:
            reasons = "; ".join(arms.invalid_reasons(self.run.rounds))
            raise Unmeasurable(f"{self.run.node}: {MOST_INVALID + 1} rounds do not count: {reasons}")

    def _tell(self) -> None:
        run, done = self.run, len(self.run.counted)
        most = run.looks[-1]
        costs = [one.old.cost_s + one.new.cost_s for one in run.rounds]
        left_s = sum(costs) / len(costs) * (most - done) if costs else None
        stage = "comparing" if run.verdict is None else f"comparing, after {run.verdict.n} rounds: {run.verdict}"
        self._around.tell(Progress(run.node, stage, done, most, left_s, unit="rounds at most"))

    def _save(self) -> None:
        """In a thread, since a slow disk must not hold up other nodes. Raises: RunFileError."""
        self.run.wall_s, self.run.temporary_env = round(self._now_s(), 3), self._in_force.temporary
        error = gevent.get_hub().threadpool.spawn(_try_to_save, self.run, self._around.results).get()
        if error is not None:
            raise error

    def _now_s(self) -> float:
        return self._around.clock() - self._began_at


def _try_to_save(run: VerifyRun, results: Path) -> RunFileError | None:
    try:
        verify_file.save(run, results)
    except RunFileError as error:
        return error
    return None
