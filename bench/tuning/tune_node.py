"""One node, tuned: a race whose blocks the node measures, and a file that is always true to what was measured.

Must not know: other nodes, the inventory's files, the command.
"""

from __future__ import annotations

from bench.running.client import BenchError, Target
from bench.running.node_run import Progress
from bench.tuning import tuned
from bench.tuning.meter import InForce, Surroundings, restart_env, streams_of
from bench.tuning.racing import Race
from bench.tuning.sitting import Sitting
from bench.tuning.tune_file import TuneRun


class NodeTune(Sitting):
    """Carries one tune out, or on."""

    def __init__(self, target: Target, run: TuneRun, around: Surroundings) -> None:
        super().__init__(target, run, around, InForce(run.own_env, restart_env(run.plan.default), run.temporary_env))
        self.run = run
        self._round = 0

    def _measure(self) -> None:
        run = self.run
        race = self._resumed()
        self._tell(race)
        while race.outcome is None:
            settings, is_last_of_round = race.wanted[0], len(race.wanted) == 1
            record = self._meter.block(settings, streams_of(settings, run.plan.objective), race.most_s)
            run.blocks.append(record)
            race.tell(record.block)
            self._round += is_last_of_round
            self._checkpoint()
            self._tell(race)
        run.outcome = race.outcome
        run.profile = tuned.profile(run)

    def _resumed(self) -> Race:
        """Raises: BenchError where the race would have asked for other blocks than those that were measured."""
        try:
            return Race.resumed(self.run.plan, [record.block for record in self.run.blocks])
        except ValueError as error:
            why = f"its tune was begun by another version of bench ({error}); begin anew."
            raise BenchError(f"{self.run.node}: {why}") from error

    def _tell(self, race: Race) -> None:
        stage, best = f"round {self._round + 1}", best_so_far(race, self.run)
        spent_s, left_s = race.cost_s, 0.0 if race.outcome else race.left_s
        total = round(spent_s + left_s)
        self._around.tell(Progress(self.run.node, stage, round(spent_s), total, left_s, best, "s at most"))


def best_so_far(race: Race, run: TuneRun) -> str:
    """The leader and what it did, for people; nothing is sure of it yet."""
    best = race.best_so_far
    rates = [r.figures.decode_tokens_per_s for r in run.blocks if r.figures and r.settings == best]
    return f"best so far {best}: {sum(rates) / len(rates):.3g} tokens/s" if best and rates else ""
