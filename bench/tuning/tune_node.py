"""One node, tuned: a race whose blocks the node measures, and a file that is always true to what was measured.

Owns one tune from its first block to its last write. Must not know: other nodes, the inventory's files, the command.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import gevent

from bench.running import node_facts
from bench.running.client import BenchError, Target
from bench.running.node_run import Interrupted, Progress
from bench.running.runfile import RunFileError
from bench.tuning import tune_file, tuned
from bench.tuning.meter import InForce, Meter, Surroundings, restart_env, streams_of
from bench.tuning.racing import Race
from bench.tuning.tune_file import TuneRun

CHECKPOINT_S = 5.0


class NodeTune:
    """Carries one tune out, or on."""

    def __init__(self, target: Target, run: TuneRun, around: Surroundings) -> None:
        self.run = run
        self._around = around
        self._began_at = self._saved_at = around.clock() - run.wall_s
        self._round = 0
        self._in_force = InForce(run.own_env, restart_env(run.plan.default), run.temporary_env)
        self._meter = Meter(target, around, run.question, self._now_s, self._in_force, self._save)

    def carry_out(self) -> TuneRun:
        """Race until the end, an interruption or a failure; the tune's status and problem say which.

        The node is given back what it had, whatever happened. Raises: RunFileError when the file cannot be written.
        """
        run = self.run
        run.status, run.problem = "running", ""
        self._save()
        try:
            self._race()
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

    def _race(self) -> None:
        run = self.run
        looked = self._meter.begin()
        run.before = run.before or looked
        run.fingerprint = run.fingerprint or node_facts.fingerprint(looked)
        race = Race.resumed(run.plan, [record.block for record in run.blocks])
        self._tell(race)
        while race.outcome is None:
            settings, is_last_of_round = race.wanted[0], len(race.wanted) == 1
            record = self._meter.block(settings, streams_of(settings, run.plan.objective))
            run.blocks.append(record)
            race.tell(record.block)
            self._round += is_last_of_round
            self._checkpoint()
            self._tell(race)
        run.outcome = race.outcome
        run.profile = tuned.profile(run)

    def _tell(self, race: Race) -> None:
        budget_s = self.run.plan.budget_s
        spent_s = min(budget_s, race.cost_s)
        stage, best = f"round {self._round + 1}", best_so_far(race, self.run)
        left_s = budget_s - spent_s
        self._around.tell(Progress(self.run.node, stage, round(spent_s), round(budget_s), left_s, best, "s at most"))

    def _checkpoint(self) -> None:
        """Write the file, now and then. A disk that is full may have room at the next; the last write tells."""
        if self._around.clock() - self._saved_at >= CHECKPOINT_S:
            with suppress(RunFileError):
                self._save()

    def _save(self) -> None:
        """In a thread, since a slow disk must not hold up other nodes. Raises: RunFileError."""
        self._saved_at = self._around.clock()
        self.run.wall_s, self.run.temporary_env = round(self._now_s(), 3), self._in_force.temporary
        error = gevent.get_hub().threadpool.spawn(_try_to_save, self.run, self._around.results).get()
        if error is not None:
            raise error

    def _now_s(self) -> float:
        return self._around.clock() - self._began_at


def best_so_far(race: Race, run: TuneRun) -> str:
    """The leader and what it did, for people; nothing is sure of it yet."""
    best = race.best_so_far
    rates = [r.figures.decode_tokens_per_s for r in run.blocks if r.figures and r.settings == best]
    return f"best so far {best}: {sum(rates) / len(rates):.3g} tokens/s" if best and rates else ""


def _try_to_save(run: TuneRun, results: Path) -> RunFileError | None:
    try:
        tune_file.save(run, results)
    except RunFileError as error:
        return error
    return None
