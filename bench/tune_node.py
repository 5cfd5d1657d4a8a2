"""One node, tuned: a race whose blocks the node measures, and a file that is always true to what was measured.

Owns one tune from its first block to its last write. Must not know: other nodes, the inventory's files, the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gevent

from bench import block, board_validity, node_facts, tune_file, tuned
from bench.block import Busy, Gone, SettingsRefused
from bench.client import BenchError, Target
from bench.node_run import Interrupted, Progress
from bench.racing import Race
from bench.runfile import RunFileError
from bench.samples import Facts
from bench.space import Settings, Value
from bench.tune_file import BlockRecord, TuneRun

COOL_TO_C = 70.0  # a Pi slows down at 80; a block of half a minute takes it up by less than ten degrees
COOL_WAIT_S = 180.0
ATTEMPTS = 4  # of a block on a node that does not answer, or is used by others
PAUSE_S = 5.0


class Deployment(Protocol):
    """How settings that need a restart come onto a node."""

    def deploy(self, node: str, env: dict[str, Value] | None) -> None:
        """Have the node run with this profile, or with the inventory's own (None), and wait for it.

        Raises: BenchError.
        """


class NoDeployment:
    """For a tune without restarts: its settings all travel in requests."""

    def deploy(self, node: str, env: dict[str, Value] | None) -> None:
        raise BenchError(f"{node}: settings that need a restart, but --restarts was not given.")


@dataclass(frozen=True)
class Surroundings:
    """What a node is measured with, common to all nodes: where files go, who is told, how one waits."""

    results: Path
    tell: Callable[[Progress], None]
    deployment: Deployment
    cool_to_c: float = COOL_TO_C
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = gevent.sleep


class NodeTune:
    """Carries one tune out, or on."""

    def __init__(self, target: Target, run: TuneRun, around: Surroundings) -> None:
        self.run = run
        self._target, self._around = target, around
        self._began_at = around.clock() - run.wall_s
        self._round = 0
        self._looked: Facts | None = None

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
        finally:
            self._put_back()
        run.wall_s = round(self._now_s(), 3)
        self._save()
        return run

    def _race(self) -> None:
        run = self.run
        node_facts.require_ready(self._target)
        self._looked = node_facts.look(self._target, "before", self._now_s())
        run.before = run.before or self._looked
        run.fingerprint = run.fingerprint or node_facts.fingerprint(self._looked)
        race = Race.resumed(run.plan, [record.block for record in run.blocks])
        self._tell(race)
        while race.outcome is None:
            last_of_round = len(race.wanted) == 1
            record = self._block(race.wanted[0])
            run.blocks.append(record)
            race.tell(record.block)
            self._round += last_of_round
            self._checkpoint()
            self._tell(race)
        run.outcome = race.outcome
        run.profile = tuned.profile(run)

    def _block(self, settings: Settings) -> BlockRecord:
        """Measure these settings once, whatever it takes; see `_measure` for what may come of it.

        A node that is busy or silent is asked again, ATTEMPTS times in all. Raises: BenchError after that.
        """
        began_s, streams = self._now_s(), streams_of(settings, self.run)
        for attempt in range(ATTEMPTS):
            try:
                return self._measure(settings, streams, began_s)
            except (Busy, Gone):
                if attempt + 1 == ATTEMPTS:
                    raise
                self._around.sleep(PAUSE_S)
                node_facts.require_ready(self._target)
        raise AssertionError("the last attempt returns or raises")

    def _measure(self, settings: Settings, streams: int, began_s: float) -> BlockRecord:
        """One block.

        1. The settings that need a restart are deployed, where others are in force.
        2. The board is let cool down.
        3. Refused settings are "failed". 4. What speaks against the block makes it "invalid".
        Raises: Busy, Gone, WrongKey.
        """

        def record(**fields: Any) -> BlockRecord:
            cost_s = round(self._now_s() - began_s, 6)
            return BlockRecord(settings=settings, began_s=round(began_s, 6), cost_s=cost_s, streams=streams, **fields)

        if problem := self._deployed(settings):  # 1
            return record(status="failed", reason=problem)
        self._cool_down()  # 2
        before = self._looked
        try:
            answer = block.ask(self._target, block.live(settings), self.run.question, streams)
        except SettingsRefused as refused:  # 3
            return record(status="failed", reason=str(refused))
        self._looked = after = node_facts.look(self._target, "after", self._now_s())
        figures = block.figures(answer.measured)
        against = board_validity.marks(before.node if before else None, after.node)
        if against:  # 4
            reason = "; ".join(f"{mark.reason} ({mark.remedy})" for mark in against)
            return record(status="invalid", reason=reason, samples=answer.samples, facts=after)
        if figures is None:
            reason = "the answer ended after one token"
            return record(status="invalid", reason=reason, samples=answer.samples, facts=after)
        return record(status="measured", figures=figures, samples=answer.samples, facts=after)

    def _deployed(self, settings: Settings) -> str:
        """See to it that the settings of a restart are in force; why they cannot be, or nothing."""
        wanted = restart_env(settings, self.run)
        in_force = self.run.temporary_env or restart_env(self.run.plan.default, self.run)
        if wanted == in_force:
            return ""
        self.run.temporary_env = wanted  # told before it is done, for whoever finds the file of a killed bench
        self._checkpoint()
        try:
            self._around.deployment.deploy(self._target.name, {**self.run.own_env, **wanted})
            node_facts.require_ready(self._target)
        except BenchError as error:
            return str(error)
        self._looked = node_facts.look(self._target, "before", self._now_s())
        return ""

    def _put_back(self) -> None:
        """Deploy the inventory's own profile again, where another was in force for measuring."""
        if self.run.temporary_env is None:
            return
        try:
            self._around.deployment.deploy(self._target.name, None)
            self.run.temporary_env = None
        except BenchError as error:
            self.run.status = "failed"
            self.run.problem = (
                f"{error} The node still runs with {self.run.temporary_env}; put its own profile back with: "
                f"ansible-playbook ansible/profile.yml --limit {self._target.name}"
            )

    def _cool_down(self) -> None:
        """Wait until the board is as cool as at a block's beginning it has to be. One that stays hot is measured: what
        heat does to the figures shows in the throttle bits."""
        ends_at = self._around.clock() + COOL_WAIT_S
        while (now_c := temperature(self._looked)) is not None and now_c > self._around.cool_to_c:
            if self._around.clock() > ends_at:
                return
            self._around.tell(self._progress(f"cooling down from {now_c:.0f} °C"))
            self._around.sleep(PAUSE_S)
            self._looked = node_facts.look(self._target, "before", self._now_s())

    def _tell(self, race: Race) -> None:
        self._around.tell(self._progress(f"round {self._round + 1}", race))

    def _progress(self, stage: str, race: Race | None = None) -> Progress:
        budget_s = self.run.plan.budget_s
        spent_s = sum(record.cost_s for record in self.run.blocks)
        best = best_so_far(race, self.run) if race else ""
        left_s = max(0.0, budget_s - spent_s)
        return Progress(self.run.node, stage, round(min(spent_s, budget_s)), round(budget_s), left_s, best, "s at most")

    def _checkpoint(self) -> None:
        """A disk that is full may have room again at the next; the last write tells."""
        with suppress(RunFileError):
            self._save()

    def _save(self) -> None:
        """In a thread, since a slow disk must not hold up other nodes. Raises: RunFileError."""
        self.run.wall_s = round(self._now_s(), 3)
        error = gevent.get_hub().threadpool.spawn(_try_to_save, self.run, self._around.results).get()
        if error is not None:
            raise error

    def _now_s(self) -> float:
        return self._around.clock() - self._began_at


def streams_of(settings: Settings, run: TuneRun) -> int:
    """How many generations a block has at once: as many as the settings have slots, where slots are raced for."""
    slots = settings.env.get("MAX_CONCURRENT_REQUESTS")
    is_for_one = run.plan.objective == "latency" or not isinstance(slots, int)
    return 1 if is_for_one else int(slots or 1)


def restart_env(settings: Settings, run: TuneRun) -> dict[str, Value]:
    """Those of the settings that only a restart changes."""
    names = {axis.name for axis in run.plan.space.axes if axis.needs_restart}
    return {name: value for name, value in settings.items if name in names}


def best_so_far(race: Race, run: TuneRun) -> str:
    """The leader and what it did, for people; nothing is sure of it yet."""
    best = race.best_so_far
    rates = [r.figures.decode_tokens_per_s for r in run.blocks if r.figures and r.settings == best]
    return f"best so far {best}: {sum(rates) / len(rates):.3g} tokens/s" if best and rates else ""


def temperature(facts: Facts | None) -> float | None:
    found = facts.node.get("temperature_c") if facts and facts.node else None
    return float(found) if isinstance(found, int | float) else None


def _try_to_save(run: TuneRun, results: Path) -> RunFileError | None:
    try:
        tune_file.save(run, results)
    except RunFileError as error:
        return error
    return None
