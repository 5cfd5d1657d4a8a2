"""`bench verify`: measure whether a node's new profile helped, and put back what did not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
from gevent.event import Event

from bench import all_nodes
from bench.commands import interruption
from bench.commands.block_options import OF_A_BLOCK, block_options
from bench.commands.interruption import EXIT_INTERRUPTED
from bench.commands.nodes import Chosen, allow_many_files, node_options
from bench.inventory import tuned_file
from bench.inventory.tuned_file import ProfileError
from bench.progress import shown
from bench.running import runfile
from bench.running.client import BenchError, Target
from bench.running.cooling import Cooling
from bench.running.runfile import RunFileError
from bench.tuning import arms
from bench.tuning.block import Question
from bench.tuning.meter import NoDeployment, Surroundings
from bench.tuning.objective import Objective
from bench.tuning.verify import Pair, Verification, Verified

EXIT_FAILED, EXIT_SLOWER = 1, 3


@dataclass(frozen=True)
class PutBack:
    """What was done about a node that became slower. command: what deploys the previous profile; done already where
    `is_applied`."""

    node: str
    command: str = ""
    is_applied: bool = False
    problem: str = ""


@click.command(
    epilog="Exit status: 0 no node became slower; 1 a node failed; 2 wrong usage; 3 a node became slower, and its "
    "previous profile is in the inventory again; 130 interrupted, what was measured is kept."
)
@node_options
@click.option(
    "--rounds", type=click.IntRange(arms.LEAST_ROUNDS, 200), help="At most so many rounds of two blocks. [21]"
)
@block_options
@click.option("--dry-run", is_flag=True, help="Measure, and put nothing back.")
@click.option("--apply", "is_applied", is_flag=True, help="Deploy what was put back, through profile.yml.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    chosen: Chosen,
    objective: Objective,
    rounds: int | None,
    with_restarts: bool,
    max_tokens: int,
    cool_to_c: float,
    seed: int,
    resume: bool,
    dry_run: bool,
    is_applied: bool,
    as_json: bool,
) -> None:
    """Compare each node's profile with the one before it, in interleaved rounds on the node itself.

    Run it after profile.yml has deployed what `bench tune` wrote. Old and new are measured in turn by POST /benchmark,
    which takes N_CTX, N_THREADS and N_BATCH with it; where they differ in what only a restart changes, --restarts is
    needed. A profile that made the node slower is replaced by the one before it.
    """
    if dry_run and is_applied:
        raise click.UsageError("--apply deploys what --dry-run does not put back.")
    if resume:
        interruption.refuse_beside_resume(ctx, (*OF_A_BLOCK, "rounds"))
    allow_many_files()
    interrupt = interruption.by_signals()
    deployment = chosen.playbook() if chosen.has_inventory else NoDeployment()
    with chosen.locked(), shown(is_wanted=True) as progress:
        around = Surroundings(chosen.results, progress.tell, deployment, Cooling(cool_to_c))
        looks, question = arms.looks_of(rounds), Question(max_tokens=max_tokens)
        verification = Verification(question, objective, looks, seed, with_restarts, around, interrupt)
        pairs, problems = _pairs(chosen)
        targets = [target for target in chosen.targets if target.name not in problems]
        results = verification.verify(targets, pairs, resume)
        results += [Verified(name, problem=problem) for name, problem in (chosen.problems | problems).items()]
        back = {} if dry_run else _put_back(chosen, results, is_applied, interrupt)
    _print(results, back, as_json)
    sys.exit(exit_status(results, back, interrupt.is_set()))


def exit_status(results: Sequence[Verified], back: dict[str, PutBack], was_interrupted: bool) -> int:
    if was_interrupted:
        return EXIT_INTERRUPTED
    if any(each.problem for each in results) or any(each.problem for each in back.values()):
        return EXIT_FAILED
    return EXIT_SLOWER if any(_is_slower(each) for each in results) else 0


def _pairs(chosen: Chosen) -> tuple[dict[str, Pair], dict[str, str]]:
    """Each node's old and new env; why a node has none, by its name."""
    pairs, problems = {}, {}
    for target in chosen.targets:
        inventory = chosen.inventory_of(target.name)
        try:
            if inventory is None:
                raise BenchError(f"{target.name}: its profiles are in an inventory; name it with --inventory.")
            new, old = tuned_file.read(inventory, target.name), tuned_file.read_previous(inventory, target.name)
            if new is None:
                raise BenchError(f"{target.name} has no profile in {inventory}; `bench tune` writes one.")
            pairs[target.name] = Pair(old.env if old else {}, new)
        except (BenchError, ProfileError) as error:
            problems[target.name] = str(error)
    return pairs, problems


def _is_slower(result: Verified) -> bool:
    verdict = result.run.verdict if result.run and result.run.status == "complete" else None
    return verdict is not None and verdict.is_final and verdict.kind == "slower"


def _put_back(chosen: Chosen, results: Sequence[Verified], is_applied: bool, interrupt: Event) -> dict[str, PutBack]:
    """Restore the previous profile of each node that became slower; deploy it where that is wanted.

    One that was put back already, by a verification that is told again, stays as it is.
    """
    slower = [each for each in results if _is_slower(each) and each.run and not each.run.restored]
    back = {}
    for each in slower:
        inventory, text = chosen.inventory_of(each.node), " ".join(chosen.playbook().command(each.node))
        try:
            if inventory is None:
                raise ProfileError(f"{each.node}: its profiles are in an inventory; name it with --inventory.")
            if _is_in_inventory(each, inventory):
                tuned_file.restore(inventory, each.node)
            _remember(chosen, each)
            back[each.node] = PutBack(each.node, text)
        except ProfileError as error:
            back[each.node] = PutBack(each.node, text, problem=str(error))
    if not is_applied:
        return back

    def deploy(target: Target) -> PutBack:
        text = back[target.name].command
        try:
            chosen.playbook().deploy(target.name, None)
        except BenchError as error:
            return PutBack(target.name, text, problem=str(error))
        return PutBack(target.name, text, is_applied=True)

    targets = [t for t in chosen.targets if t.name in back and not back[t.name].problem]
    return back | {each.node: each for each in all_nodes.on_each(targets, deploy, interrupt) if each}


def _is_in_inventory(result: Verified, inventory: Path) -> bool:
    """Whether the profile that was measured still is the node's: a second restoring would bring it back."""
    standing = tuned_file.read(inventory, result.node)
    return standing is not None and result.run is not None and standing.env == result.run.base_env


def _remember(chosen: Chosen, result: Verified) -> None:
    """In the verification's file, so that telling it again puts nothing back twice."""
    assert result.run is not None
    result.run.restored = True
    try:
        runfile.save(result.run, chosen.results)
    except RunFileError as error:
        click.echo(f"bench: {error}", err=True)


def _print(results: Sequence[Verified], back: dict[str, PutBack], as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"nodes": [_document(each, back.get(each.node)) for each in results]}))
        return
    for each in results:
        for line in _lines(each, back.get(each.node)):
            click.echo(line)
        for problem in (each.problem, back[each.node].problem if each.node in back else ""):
            if problem:
                click.echo(f"bench: {problem}", err=True)


def _lines(result: Verified, back: PutBack | None) -> list[str]:
    run = result.run
    if run is None:
        return []
    if run.verdict is None or not run.verdict.is_final:
        return [f"{run.node}: no verdict yet: {run.status} after {len(run.counted)} rounds"]
    verdict = run.verdict
    lines = [
        f"{run.node}: {verdict}; {verdict.n} rounds, p = {verdict.p:.2g}, {run.objective}",
        f"  old: {run.old}",
        f"  new: {run.new}",
        f"  every block is in {result.path}",
    ]
    if back and not back.problem:
        done = "deployed" if back.is_applied else f"deploy it with: {back.command}"
        lines.insert(3, f"  the previous profile is in the inventory again; {done}")
    return lines


def _document(result: Verified, back: PutBack | None) -> dict[str, Any]:
    run = result.run
    return {
        "node": result.node,
        "run": run.id if run else None,
        "status": run.status if run else "failed",
        "problem": result.problem or (back.problem if back else ""),
        "file": str(result.path) if result.path else None,
        "old": run.old.env if run else None,
        "new": run.new.env if run else None,
        "rounds": len(run.counted) if run else 0,
        "verdict": run.verdict if run else None,
        "words": str(run.verdict) if run and run.verdict else None,
        "put_back": bool(run and run.restored),
        "applied": bool(back and back.is_applied),
        "deploy_with": back.command if back else None,
    }
