"""`bench run`: put load on nodes, and measure what they make of it."""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import msgspec

from bench.commands import interruption
from bench.commands.interruption import EXIT_INTERRUPTED
from bench.commands.nodes import Chosen, allow_many_files, node_options
from bench.commands.values import Duration, Level, Numbers
from bench.progress import shown
from bench.running import runfile
from bench.running.cooling import COOL_TO_C, Cooling
from bench.running.outcome import outcome
from bench.running.run_table import table
from bench.running.runfile import RunFileError
from bench.running.samples import ClosedLoop, Load, OpenLoop, Settings
from bench.running.session import Measured, Session
from bench.running.summary import ServiceLevel
from bench.running.trace import Arrivals
from bench.tuning.blocks import BlockRun
from bench.tuning.sitting import leftovers

EXIT_FAILED, EXIT_INVALID = 1, 3
OF_THE_LOAD = (
    "concurrency", "rate", "arrivals", "sweep_to", "requests", "duration_s", "warm_up", "prompt_tokens", "max_tokens",
    "seed", "timeout_s",
)  # fmt: skip


@click.command(
    epilog="Exit status: 0 all measured; 1 a node failed, the others were measured; 2 wrong usage; 3 all measured, but "
    "a run is invalid and must decide nothing; 130 interrupted, what was measured is kept."
)
@node_options
@click.option(
    "--concurrency", type=Numbers(1, 1024, is_whole=True), help="Closed loop: so many clients, a stage each. [1]"
)
@click.option("--rate", type=Numbers(0.001, 1000, is_whole=False), help="Open loop: so many requests/s, a stage each.")
@click.option(
    "--arrivals", type=click.Choice(["constant", "poisson"]), default="poisson", show_default=True,
    help="When requests of an open loop come.",
)  # fmt: skip
@click.option(
    "--sweep-to", type=click.IntRange(1, 1024), metavar="N",
    help="Closed loop of 1, 2, 4 … clients until throughput grows no more, at most N.",
)  # fmt: skip
@click.option(
    "--requests", type=click.IntRange(1, 100_000), default=30, show_default=True, help="Measured requests a stage."
)
@click.option("--duration", "duration_s", type=Duration(), help="At most so long a stage, even with fewer requests.")
@click.option(
    "--warm-up", type=click.IntRange(0, 1000),
    help="Requests before a stage's measured ones, in no figure. [as many as clients; open loop: 2]",
)  # fmt: skip
@click.option(
    "--prompt-tokens", type=Numbers(16, 8192, is_whole=True), default="128", show_default=True,
    help="Prompt lengths, mixed evenly; by the first node's own count.",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(1, 2048), default=64, show_default=True, help="Length of each answer."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1),
    help="Same seed, same prompts. Drawn anew if not given: an engine may remember prompts that it was asked before.",
)  # fmt: skip
@click.option("--slo", type=Level(), help="Service level for goodput: ttft=2s,tpot=200ms,e2e=30s, or some of them.")
@click.option(
    "--timeout", "timeout_s", type=Duration(), default="300s", show_default=True, help="Longest time for one answer."
)
@click.option(
    "--cool-to", "cool_to_c", type=click.FloatRange(20, 120), default=COOL_TO_C, show_default=True,
    help="°C that a board must be down to before each stage.",
)  # fmt: skip
@click.option(
    "--resume", is_flag=True,
    help="Go on with each node's interrupted run, as that was begun; a stage that was cut off is measured anew.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    chosen: Chosen,
    slo: ServiceLevel | None,
    cool_to_c: float,
    resume: bool,
    as_json: bool,
    **load: Any,
) -> None:
    """Put load on each node's /generate, all nodes at the same time, and measure it.

    Prompts begin differently, so that no cache helps, and are the same for all nodes. Latencies count from the moment
    that a request was planned for. Each run's file holds every sample.
    """
    settings = None if resume else _settings(**load)
    if resume:
        interruption.refuse_beside_resume(ctx, OF_THE_LOAD)
    allow_many_files()
    interrupt = interruption.by_signals()
    with shown() as progress:
        session = Session(chosen.results, progress.tell, interrupt, Cooling(cool_to_c))
        problems = chosen.problems | _not_their_own(chosen)
        targets = [target for target in chosen.targets if target.name not in problems]
        measured = session.resume(targets) if settings is None else session.measure(targets, settings)
    measured += [Measured(name, problem=problem) for name, problem in problems.items()]
    _print(measured, slo, as_json)
    sys.exit(exit_status(measured, interrupt.is_set()))


def exit_status(measured: Sequence[Measured], was_interrupted: bool) -> int:
    if was_interrupted:
        return EXIT_INTERRUPTED
    if any(each.problem or each.run is None for each in measured):
        return EXIT_FAILED
    return 0 if all(each.run.is_valid for each in measured if each.run) else EXIT_INVALID


def _not_their_own(chosen: Chosen) -> dict[str, str]:
    """Why a node would not be measured as people use it, by its name. Of a bench that lives, nothing is left over."""
    problems = {}
    for target in chosen.targets:
        try:
            with runfile.locked(chosen.results, target.name):
                left = _left(chosen.results, target.name)
        except RunFileError as error:
            problems[target.name] = str(error)
            continue
        if left is not None:
            where = [part for source in chosen.inventories for part in ("-i", source)]
            again = shlex.join(["bench", left.kind, *where, "--limit", target.name, "--resume"])
            problems[target.name] = (
                f"{target.name}: a bench that was killed left settings for measuring in force: {left.temporary_env}, "
                f"says {runfile.path_of(left, chosen.results)}. `{again}` puts the node's own back first, and so does "
                "a new tune."
            )
    return problems


def _left(results: Path, node: str) -> BlockRun | None:
    with suppress(RunFileError):  # of a tune; no reason not to put load on the node
        return next(iter(leftovers(results, node)), None)
    return None


def _settings(
    *,
    concurrency: tuple[int, ...] | None,
    rate: tuple[float, ...] | None,
    arrivals: Arrivals,
    sweep_to: int | None,
    seed: int | None,
    **others: Any,
) -> Settings:
    given = [n for n, v in (("--concurrency", concurrency), ("--rate", rate), ("--sweep-to", sweep_to)) if v]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)}: one kind of load at a time.")
    loads: tuple[Load, ...] = tuple(ClosedLoop(each) for each in concurrency or (1,))
    if rate:
        loads = tuple(OpenLoop(each, arrivals) for each in rate)
    seed = secrets.randbelow(2**32) if seed is None else seed
    return Settings(seed=seed, loads=() if sweep_to else loads, sweep_to=sweep_to, **others)


def _print(measured: Sequence[Measured], slo: ServiceLevel | None, as_json: bool) -> None:
    outcomes = [outcome(each.run, slo) for each in measured if each.run]
    if as_json:
        problems = {each.node: each.problem for each in measured if each.problem}
        files = {each.node: str(each.path) for each in measured if each.path}
        click.echo(msgspec.json.encode({"runs": outcomes, "problems": problems, "files": files}))
        return
    for each in outcomes:
        click.echo(table(each) + "\n")
    for node in measured:
        if node.path:
            click.echo(f"{node.node}: every sample is in {node.path}")
        elif node.problem:
            click.echo(f"bench: {node.problem}", err=True)
