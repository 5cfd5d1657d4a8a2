"""`bench verify`: measure whether a node's new profile helped, and put back what did not."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
from bench.knobs import KNOBS
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
from bench.tuning.verify_file import VerifyRun

EXIT_FAILED, EXIT_SLOWER = 1, 3


Standing = Literal["measured", "previous", "another"]


@dataclass(frozen=True)
class PutBack:
    """What was done about a node that became slower.

    said: what is in the inventory now; nothing where that could not be changed.
    command: what deploys it; nothing where there is nothing to deploy, done already where `is_applied`.
    """

    node: str
    said: str = ""
    command: str = ""
    is_applied: bool = False
    problem: str = ""


@click.command(
    epilog="Exit status: 0 no node became slower; 1 a node failed; 2 wrong usage; 3 a node became slower: its "
    "profile is replaced by the one before it, unless another one stands there by now; 130 interrupted, what was "
    "measured is kept."
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
    needed. A profile that made the node slower is replaced by the one before it; by the defaults, if it was the first.
    """
    if dry_run and is_applied:
        raise click.UsageError("--apply deploys what --dry-run does not put back.")
    if resume:
        interruption.refuse_beside_resume(ctx, (*OF_A_BLOCK, "rounds"))
    allow_many_files()
    interrupt = interruption.by_signals()
    deployment = chosen.playbook() if chosen.has_inventory else NoDeployment()
    with chosen.locked(), shown() as progress:
        around = Surroundings(chosen.results, progress.tell, deployment, Cooling(cool_to_c))
        looks, question = arms.looks_of(rounds), Question(max_tokens=max_tokens)
        verification = Verification(
            question, objective, looks, seed, with_restarts, around, interrupt, chosen.inventories
        )
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
    back = {each.node: _put_one_back(chosen, each) for each in slower}
    if not is_applied:
        return back

    def deploy(target: Target) -> PutBack:
        try:
            chosen.playbook().deploy(target.name, None)
        except BenchError as error:
            return replace(back[target.name], problem=str(error))
        return replace(back[target.name], is_applied=True)

    targets = [target for target in chosen.targets if target.name in back and back[target.name].command]
    return back | {each.node: each for each in all_nodes.on_each(targets, deploy, interrupt) if each}


def _put_one_back(chosen: Chosen, result: Verified) -> PutBack:
    """Restore a node's previous profile where the one that was measured still is the node's.

    Where the previous one stands there already it was restored a moment ago, but that could not be remembered: a
    second restoring would bring back the slower one. Where another one stands there, somebody wants that.
    """
    node, inventory = result.node, chosen.inventory_of(result.node)
    assert result.run is not None
    try:
        if inventory is None:
            raise ProfileError(f"{node}: its profiles are in an inventory; name it with --inventory.")
        standing = _standing(result.run, inventory)
        if standing == "another":
            return PutBack(node, "another profile stands in the inventory now than was measured; it was left there")
        if standing == "measured":
            tuned_file.restore(inventory, node)
        is_first = tuned_file.read(inventory, node) is None
    except ProfileError as error:
        return PutBack(node, problem=str(error))
    _remember(chosen, result)
    of_first = "it was the node's first profile, so there is none in the inventory now: the defaults count again"
    said = of_first if is_first else "the previous profile is in the inventory again"
    return PutBack(node, said, shlex.join(chosen.playbook().command(node)))


def _standing(run: VerifyRun, inventory: Path) -> Standing:
    """Which profile is the node's in the inventory by now. Raises: ProfileError."""
    profile, beside = tuned_file.read(inventory, run.node), tuned_file.read_previous(inventory, run.node)
    if profile is not None and profile.env == run.base_env:
        return "measured"
    env = dict(profile.env) if profile else {}
    is_old = all(env.get(name, KNOBS[name].default) == value for name, value in run.old.env.items())
    return "previous" if is_old and (beside is None or beside.env == run.base_env) else "another"


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
    if back and back.said:
        done = "; deployed" if back.is_applied else f"; deploy that with: {back.command}" if back.command else ""
        lines.insert(3, f"  {back.said}{done}")
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
        "inventory": back.said or None if back else None,
        "applied": bool(back and back.is_applied),
        "deploy_with": back.command or None if back else None,
    }
