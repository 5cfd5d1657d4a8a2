"""One node, verified: blocks of the old and the new profile in interleaved rounds, until a look decides.

Must not know: other nodes, the inventory's files.
"""

from __future__ import annotations

from bench.running.client import BenchError, Target
from bench.running.node_run import Progress
from bench.tuning import arms
from bench.tuning.meter import InForce, Surroundings, streams_of
from bench.tuning.sitting import Sitting
from bench.tuning.verify_file import Round, VerifyRun

MOST_INVALID = 8  # rounds that do not count, before a node is given up


class Unmeasurable(BenchError):
    """An arm does not run, or nothing that is measured counts."""


class NodeVerify(Sitting):
    """Carries one verification out, or on."""

    def __init__(self, target: Target, run: VerifyRun, around: Surroundings) -> None:
        super().__init__(target, run, around, InForce(run.base_env, run.own_env, run.temporary_env))
        self.run = run

    def _measure(self) -> None:
        run = self.run
        run.verdict = arms.verdict(run)
        while run.verdict is None or not run.verdict.is_final:
            self._tell()
            run.rounds.append(self._round(len(run.rounds)))
            self._require_sense()
            run.verdict = arms.verdict(run)
            self._checkpoint()

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
