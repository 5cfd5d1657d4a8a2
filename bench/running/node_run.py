"""One node, measured: its stages in turn, its facts before and after, and its file always true to what was measured.

Owns one run from its first request to its last write. Must not know: other nodes, the command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gevent

from bench import roofline
from bench.running import ending, lateness, node_facts, runfile, validity
from bench.running.client import BenchError, Patience, Target, generate
from bench.running.cooling import Cooling
from bench.running.lateness import Heartbeat
from bench.running.load import Loading, Monotonic, NodeGone, TraceRefused, keep_up
from bench.running.outcome import points
from bench.running.samples import KIND, ClosedLoop, Facts, Load, Run, Sample, Settings, Stage
from bench.running.saturation import next_concurrency
from bench.running.saving import Saving
from bench.running.summary import stage_summary
from bench.running.trace import LONGEST_WORDS, PARTS, Calibration, Trace

CHECKPOINT_S = 10.0
FACTS_EVERY_S = 15.0
OPEN_WARM_UP = 2
SHORT_WORDS, LONG_WORDS = 16, 80


@dataclass(frozen=True)
class Progress:
    """Where a run is: `done` of `total` of a `unit`, and about `left_s` to the end of what is planned by now."""

    node: str
    stage: str
    done: int
    total: int
    left_s: float | None = None
    best: str = ""
    unit: str = "requests"


def calibrate(target: Target, seed: int, lengths: tuple[int, ...], patience: Patience) -> Calibration:
    """How this node's model counts our prompts, from a short and a long one; then that the longest length fits.

    Raises: BenchError.
    """
    node_facts.require_ready(target, wait_s=0.0)
    plain = Trace(seed, lengths, Calibration())
    counted = []
    for number, words in enumerate((SHORT_WORDS, LONG_WORDS)):
        counted.append((words, _count(target, plain.text(0, "calibration", number, words), patience)))
    calibration = Calibration.of(counted[0], counted[1])
    longest = calibration.words_for(max(lengths))
    if longest > LONGEST_WORDS:
        most = calibration.tokens_of(LONGEST_WORDS)
        raise TraceRefused(f"--prompt-tokens: {max(lengths)} is more than a request may hold, which is about {most}.")
    _count(target, plain.text(0, "calibration", 2, longest), patience)
    return calibration


def _count(target: Target, prompt: str, patience: Patience) -> int:
    reply = generate(target, prompt, 1, patience)
    if reply.counts is not None:
        return reply.counts.prompt_tokens
    failure = reply.failure
    assert failure is not None
    if failure.status == 422:
        raise TraceRefused(f"--prompt-tokens: {target.name} refuses a prompt of this length: {failure.detail}")
    raise BenchError(f"{target.name}: a first request failed ({failure}: {failure.detail})")


def new_run(target: Target, session: str, settings: Settings, calibration: Calibration, results: Path) -> Run:
    return Run(
        **runfile.begun(KIND, session, target, results),
        settings=settings,
        calibration=calibration,
        trace=Trace(settings.seed, settings.prompt_tokens, calibration).digest(),
    )


class NodeRun:
    """Carries one run out, or on."""

    def __init__(
        self,
        target: Target,
        run: Run,
        results: Path,
        heartbeat: Heartbeat,
        tell: Callable[[Progress], None] = lambda progress: None,
        cooling: Cooling | None = None,
    ) -> None:
        self.run = run
        self._saving = Saving(run, results, CHECKPOINT_S)
        self._target, self._heartbeat, self._tell = target, heartbeat, tell
        self._cooling, self._clock = cooling or Cooling(), Monotonic()
        # The run's clock stands still between two sittings.
        self._began_at = self._clock.now() - _measured_until(run)
        self._patience = Patience(answer_s=run.settings.timeout_s)
        assert run.calibration is not None
        self._trace = Trace(run.settings.seed, run.settings.prompt_tokens, run.calibration)

    def carry_out(self) -> Run:
        """Measure until the end, an interruption or a failure; the run's status and problem say which.

        Raises: RunFileError when the file cannot be written at the beginning or at the end.
        """
        begun, reading = time.monotonic(), self._heartbeat.reading()
        self.run.marks = [validity.UNFINISHED]  # until it is judged, whatever ends this process
        self._saving.now()
        with ending.told_in(self.run):
            self._measure()
        self.run.client = lateness.worse(self.run.client, lateness.cost(reading, self._heartbeat.reading()))
        self.run.wall_s = round(self.run.wall_s + time.monotonic() - begun, 3)
        self.run.marks = validity.marks(self.run)
        self._saving.now()
        return self.run

    def _measure(self) -> None:
        node_facts.require_ready(self._target)
        roofline.measured_once(self._target)
        before = node_facts.look(self._target, "before", self._now_s())
        node_facts.require_unchanged(self.run.node, self.run.fingerprint.get("node"), before.node)
        self.run.facts.append(before)
        self.run.fingerprint = self.run.fingerprint or node_facts.fingerprint(before)
        watch = gevent.spawn(self._look_on) if before.node is not None else None
        try:
            while (stage := self._next_stage()) is not None:
                self._carry_out(stage)
        finally:
            if watch is not None:
                watch.kill()
        self.run.facts.append(node_facts.look(self._target, "after", self._now_s()))

    def _next_stage(self) -> Stage | None:
        """The stage that was cut off, anew, or a new one for the next load; None when all loads were measured."""
        stages = self.run.stages
        if stages and stages[-1].ended_s is None:
            self._cool_down()
            stages[-1].begin_anew(round(self._now_s(), 5))
            return stages[-1]
        load = next_load(self.run)
        if load is None:
            return None
        self._cool_down()
        stage = Stage(len(stages), load, round(self._now_s(), 5), samples=[])
        stages.append(stage)
        return stage

    def _cool_down(self) -> None:
        """What is seen meanwhile is kept: the last look before a stage says how warm its board began."""

        def look() -> Facts:
            self.run.facts.append(node_facts.look(self._target, "during", self._now_s()))
            return self.run.facts[-1]

        def tell(what: str) -> None:
            self._tell(Progress(self.run.node, what, 0, 1, unit="pause"))

        # Also where no temperature is told: what is cut off later is judged until the last look.
        self._cooling.wait(look() if self.run.stages else self.run.facts[-1], look, tell)

    def _carry_out(self, stage: Stage) -> None:
        settings = self.run.settings
        warm_up = settings.warm_up if settings.warm_up is not None else _warm_up(stage.load)
        loading = Loading(
            ask=lambda prompt: generate(self._target, prompt.text, settings.max_tokens, self._patience),
            trace=self._trace,
            clock=self._clock,
            began_at=self._began_at,
            warm_up=warm_up,
            requests=settings.requests,
            duration_s=settings.duration_s,
            numbers=dict.fromkeys(PARTS, stage.first_number),
            on_sample=lambda sample: self._note(stage, sample, warm_up + settings.requests),
        )
        self._tell(Progress(self.run.node, str(stage.load), 0, loading.warm_up + loading.requests))
        try:
            keep_up(loading, stage)
        except NodeGone as gone:
            stage.cut_short = str(gone)
            raise
        stage.ended_s = round(self._now_s(), 5)
        self._saving.soon()

    def _note(self, stage: Stage, sample: Sample, total: int) -> None:
        done = len(stage.samples)
        left_s = (self._now_s() - stage.began_s) / done * (total - done)
        self._tell(Progress(self.run.node, str(stage.load), done, total, left_s))
        if self._saving.is_due:
            self._saving.soon()

    def _look_on(self) -> None:
        while True:
            gevent.sleep(FACTS_EVERY_S)
            with suppress(BenchError):
                self.run.facts.append(node_facts.look(self._target, "during", self._now_s()))

    def _now_s(self) -> float:
        return self._clock.now() - self._began_at


def next_load(run: Run) -> Load | None:
    """The load to measure after the stages that there are: the next of the list, or the sweep's next. Pure."""
    if run.settings.sweep_to is None:
        return run.settings.loads[len(run.stages)] if len(run.stages) < len(run.settings.loads) else None
    if run.stages and not run.stages[-1].measured:
        return None
    summaries = [stage_summary(stage, run.settings.max_tokens) for stage in run.stages if stage.measured]
    concurrency = next_concurrency(points(summaries), run.settings.sweep_to)
    return None if concurrency is None else ClosedLoop(concurrency)


def _warm_up(load: Load) -> int:
    """As many as are there at once: the ramp is over when each client was answered."""
    return load.concurrency if isinstance(load, ClosedLoop) else OPEN_WARM_UP


def _measured_until(run: Run) -> float:
    times = [stage.began_s for stage in run.stages] + [s.ended_s for stage in run.stages for s in stage.samples]
    return max([*times, *(facts.at_s for facts in run.facts)], default=0.0)
