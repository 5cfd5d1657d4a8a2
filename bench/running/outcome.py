"""What a command says of a run: its figures, where the node is full, and what speaks against it. Pure."""

from __future__ import annotations

import msgspec

from bench.running.samples import ClosedLoop, Mark, Run
from bench.running.saturation import Point, Saturation, saturation
from bench.running.summary import ServiceLevel, StageSummary, stage_summary


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A run's figures, as `--json` prints them."""

    node: str
    run: str
    status: str
    problem: str
    is_valid: bool
    marks: list[Mark]
    trace: str
    seed: int
    stages: list[StageSummary]
    saturation: Saturation | None


def outcome(run: Run, service_level: ServiceLevel | None = None) -> Outcome:
    stages = [stage_summary(stage, run.settings.max_tokens, service_level) for stage in run.stages if stage.measured]
    return Outcome(
        node=run.node,
        run=run.id,
        status=run.status,
        problem=run.problem,
        is_valid=run.is_valid,
        marks=run.marks,
        trace=run.trace,
        seed=run.settings.seed,
        stages=stages,
        saturation=saturation(points(stages)) if run.settings.sweep_to else None,
    )


def points(stages: list[StageSummary]) -> list[Point]:
    """The closed loops among the stages, as a sweep sees them."""
    found = []
    for stage in stages:
        if isinstance(stage.load, ClosedLoop):
            ttft = stage.quantities["ttft_ms"]
            failed = 1 - stage.answered / stage.requests
            p95 = ttft.p95.value if ttft else None
            found.append(Point(stage.load.concurrency, stage.output_tokens_per_s, p95, failed))
    return found
