"""`bench tune`: find the settings that suit each node, and write them into the inventory."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import msgspec

from bench.commands import interruption
from bench.commands.block_options import OF_A_BLOCK, block_options
from bench.commands.interruption import EXIT_INTERRUPTED
from bench.commands.nodes import Chosen, allow_many_files, node_options
from bench.commands.values import Duration, Numbers
from bench.inventory import git, tuned_file
from bench.inventory.tuned_file import ProfileError
from bench.progress import shown
from bench.running.cooling import Cooling
from bench.tuning import tuned
from bench.tuning.block import Question
from bench.tuning.meter import NoDeployment, Surroundings
from bench.tuning.tune import Tuned, Tuning
from bench.tuning.tune_table import commit_message, table
from bench.tuning.tuned import Wanted

EXIT_FAILED, EXIT_UNSURE = 1, 3
UNANSWERED = ("unsure", "no winner")  # what became of a node whose best settings are not known
OF_THE_RACE = (
    *OF_A_BLOCK, "min_ctx", "max_ttft_ms", "headroom_mib", "budget_s", "n_ctx", "n_threads", "n_batch", "slots",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What became of one node's profile. problem: why nothing was written although something should be."""

    node: str
    status: str
    diff: str = ""
    path: Path | None = None
    problem: str = ""


@click.command(
    epilog="Exit status: 0 each node has its best settings, written or in force already; 1 a node failed, the others "
    "were tuned; 2 wrong usage; 3 a node has settings that seem better, but the budget ended before that was sure, or "
    "none that could be measured within the limits; 130 interrupted, what was measured is kept."
)
@node_options
@click.option("--min-ctx", type=click.IntRange(128, 131072), help="No context smaller than this.")
@click.option("--max-ttft-ms", type=click.FloatRange(1), help="No settings with a longer median TTFT.")
@click.option(
    "--headroom", "headroom_mib", type=click.IntRange(0), default=512, show_default=True,
    help="MiB of memory that are to stay free.",
)  # fmt: skip
@click.option(
    "--budget", "budget_s", type=Duration(),
    help="Longest time of measuring a node. Not given: 0.8 blocks a setting (on a Pi some 20 minutes), at most 30m.",
)  # fmt: skip
@click.option("--ctx", "n_ctx", type=Numbers(128, 131072, is_whole=True), help="Values of N_CTX to try.")
@click.option("--threads", "n_threads", type=Numbers(1, 256, is_whole=True), help="Values of N_THREADS to try.")
@click.option("--batch", "n_batch", type=Numbers(8, 4096, is_whole=True), help="Values of N_BATCH to try.")
@click.option("--slots", type=Numbers(1, 1024, is_whole=True), help="Numbers of slots to try, with --restarts. [1,2,4]")
@block_options
@click.option("--dry-run", is_flag=True, help="Measure, and show what would be written, as a diff.")
@click.option("--force", is_flag=True, help="Write the winner even where it is not surely better.")
@click.option("--commit", is_flag=True, help="Make one git commit of the profiles that were written.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    chosen: Chosen,
    cool_to_c: float,
    max_tokens: int,
    with_restarts: bool,
    resume: bool,
    dry_run: bool,
    force: bool,
    commit: bool,
    as_json: bool,
    **race: Any,
) -> None:
    """Find the settings that suit each node, all nodes at the same time, and write host_vars/<node>/tuned.yml.

    Each node measures itself (POST /benchmark), a block at a time, in interleaved rounds; settings that are surely
    worse drop out early, and it ends when the winner is sure or the budget is spent. Written is only what is surely
    better than what the node has. Then deploy it with ansible/profile.yml, and prove it with `bench verify`.
    """
    if commit and (dry_run or not chosen.has_inventory):
        raise click.UsageError("--commit: there is nothing to commit with --dry-run, or without an inventory.")
    if resume:
        interruption.refuse_beside_resume(ctx, OF_THE_RACE)
    if with_restarts and not chosen.has_inventory:
        raise click.UsageError(
            "--restarts goes through profile.yml, which needs an inventory; name it with --inventory."
        )
    if race["slots"] and not with_restarts:
        raise click.UsageError("--slots: another number of slots needs a restart; allow it with --restarts.")
    allow_many_files()
    interrupt = interruption.by_signals()
    wanted = Wanted(with_restarts=with_restarts, **race)
    # Also without --restarts: a tune that is resumed, or was killed, may have a profile to put back.
    deployment = chosen.playbook() if chosen.has_inventory else NoDeployment()
    with chosen.locked(), shown() as progress:
        around = Surroundings(chosen.results, progress.tell, deployment, Cooling(cool_to_c))
        tuning = Tuning(wanted, Question(max_tokens=max_tokens), around, interrupt, chosen.profiles())
        problems = chosen.problems | _unwritable(chosen, dry_run, force)
        results = tuning.tune([target for target in chosen.targets if target.name not in problems], resume)
        results += [Tuned(name, problem=problem) for name, problem in problems.items()]
        written = [_write(each, chosen.inventory_of(each.node), dry_run, force) for each in results]
    committed = _commit(results, written) if commit else ""
    _print(results, written, committed, shlex.join(chosen.playbook().command()), as_json)
    sys.exit(exit_status(results, written, interrupt.is_set()))


def exit_status(results: Sequence[Tuned], written: Sequence[Written], was_interrupted: bool) -> int:
    if was_interrupted:
        return EXIT_INTERRUPTED
    if any(each.problem for each in results) or any(each.problem for each in written):
        return EXIT_FAILED
    return EXIT_UNSURE if any(each.status in UNANSWERED for each in written) else 0


def _unwritable(chosen: Chosen, is_dry: bool, force: bool) -> dict[str, str]:
    """Why a node's profile could not be written, by its name: told before it is measured for an hour."""
    problems = {}
    for node in chosen.fleet.nodes:
        try:
            if node.inventory is not None:
                tuned_file.require_replaceable(node.inventory, node.name, force=force, is_dry=is_dry)
        except ProfileError as error:
            problems[node.name] = str(error)
    return problems


def _write(tuned_node: Tuned, inventory: Path | None, is_dry: bool, force: bool) -> Written:
    """Put a node's winner into the inventory, or say why not.

    1. Nothing was found, or what was found is no improvement, or not surely one: unless forced, nothing.
    2. Without an inventory there is no place for it. 3. Dry: the diff. 4. Written, the replaced one kept.
    """
    run, node = tuned_node.run, tuned_node.node
    if run is None or run.outcome is None:
        return Written(node, "nothing")
    if run.profile is None:
        return Written(node, "no winner")
    reason = tuned.why_not(run)  # 1
    if reason and not force:
        is_own = run.outcome.winner is not None and run.outcome.winner.settings == run.plan.default
        return Written(node, "in force" if is_own else "unsure", problem="")
    if inventory is None:  # 2
        return Written(node, "found")
    try:
        diff = str(tuned_file.change(inventory, node, run.profile, force=force))
        if is_dry or not diff:  # 3
            return Written(node, "dry run" if diff else "in force", diff)
        return Written(node, "written", diff, tuned_file.write(inventory, node, run.profile, force=force))  # 4
    except ProfileError as error:
        return Written(node, "failed", problem=str(error))


def _commit(results: Sequence[Tuned], written: list[Written]) -> str:
    """The commit's name; nothing where nothing was written. A failure becomes the first node's problem."""
    places = [k for k, each in enumerate(written) if each.status == "written"]
    if not places:
        return ""
    runs = [run for k in places if (run := results[k].run) is not None]
    try:
        return git.commit([path for k in places if (path := written[k].path) is not None], commit_message(runs))
    except git.CommitFailed as error:
        written[places[0]] = replace(written[places[0]], problem=str(error))
        return ""


def _print(results: Sequence[Tuned], written: Sequence[Written], committed: str, deploying: str, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(_document(results, written, committed)))
        return
    for result, each in zip(results, written, strict=True):
        if result.run is not None:
            click.echo(table(result.run))
            click.echo(f"  {_said(result, each)}\n  every block is in {result.path}\n")
        if each.diff:
            click.echo(each.diff)
        for problem in (result.problem, each.problem):
            if problem:
                click.echo(f"bench: {problem}", err=True)
    if committed:
        click.echo(f"committed as {committed}")
    if any(each.status == "written" for each in written):
        click.echo(f"Deploy it with: {deploying}\nThen prove it with: bench verify, of the same inventory")


def _said(result: Tuned, each: Written) -> str:
    assert result.run is not None
    reason = tuned.why_not(result.run)
    return {
        "written": f"written: {each.path}",
        "dry run": "not written, because of --dry-run:",
        "found": f"not written, for want of an inventory: {result.run.profile.env if result.run.profile else ''}",
        "in force": f"nothing to write: {reason or 'the profile says so already'}",
        "unsure": f"not written: {reason} (or --force)",
        "failed": "not written",
        "no winner": f"nothing to write: {reason}",
        "nothing": f"nothing to write: {reason or result.run.status}",
    }[each.status]


def _document(results: Sequence[Tuned], written: Sequence[Written], committed: str) -> dict[str, Any]:
    nodes = [
        {
            "node": result.node,
            "run": result.run.id if result.run else None,
            "status": result.run.status if result.run else "failed",
            "problem": result.problem or each.problem,
            "file": str(result.path) if result.path else None,
            "outcome": result.run.outcome if result.run else None,
            "profile": result.run.profile if result.run else None,
            "written": each.status,
            "path": str(each.path) if each.path else None,
            "diff": each.diff,
        }
        for result, each in zip(results, written, strict=True)
    ]
    return {"nodes": nodes, "commit": committed or None}
