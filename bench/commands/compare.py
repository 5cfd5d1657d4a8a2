"""`bench compare A B`: two runs, or the newest runs of two nodes, beside each other."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from bench.running import runfile
from bench.running.run_table import number
from bench.running.runfile import RunFileError
from bench.running.samples import KIND, Run
from bench.running.two_runs import Row, differences, rows

UNITS = {"ttft_s": ("TTFT ms", 1000.0), "tpot_s": ("TPOT ms", 1000.0), "e2e_s": ("E2E ms", 1000.0)}
NAMES = {"decode_tokens_per_s": ("decode tok/s", 1.0), "prefill_tokens_per_s": ("prefill tok/s", 1.0), **UNITS}
HEADS = ("load", "", "A", "B", "B beside A", "p", "n")
CAVEAT = (
    "The runs were not interleaved: what else changed between them, such as heat, looks like a difference, too. "
    "Each row is judged at 5 % alone."
)


@click.command(
    epilog="Exit status: 0 compared; 1 a run cannot be read or must decide nothing; 2 wrong usage. A and B are the "
    "names of nodes in --results, or paths of run files."
)
@click.argument("a")
@click.argument("b")
@click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), default=Path("bench/results"), show_default=True,
    help="Where run files lie, a folder for each node.",
)  # fmt: skip
@click.option("--invalid-too", is_flag=True, help="Compare also a run that its own marks call invalid.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(a: str, b: str, results: Path, invalid_too: bool, as_json: bool) -> None:
    """Compare two runs of `bench run`, load by load: is B faster or slower than A, and how sure is that."""
    try:
        first, second = (_run(name, results, invalid_too) for name in (a, b))
        if first.id == second.id and first.node == second.node:
            raise RunFileError(f"{a} and {b} are the same run, {first.id}; name another run's file.")
    except RunFileError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    found, others = rows(first, second), differences(first, second)
    if as_json:
        document = {"a": first.id, "b": second.id, "nodes": [first.node, second.node]}
        named = [{**row._asdict(), "words": str(row.verdict)} for row in found]
        click.echo(msgspec.json.encode({**document, "rows": named, "differences": others, "caveat": CAVEAT}))
    elif found:
        click.echo(table(first, second, found, others))
    if not found:
        click.echo("bench: the two runs have no load in common, or no two answers under one.", err=True)
        sys.exit(1)


def table(a: Run, b: Run, found: list[Row], others: list[str]) -> str:
    lines = [f"A: {a.node}, run {a.id}", f"B: {b.node}, run {b.id}"]
    lines += [f"  they also differ in: {other}" for other in others]
    cells = [HEADS, *(_cells(row) for row in found)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADS))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*lines, CAVEAT])


def _cells(row: Row) -> tuple[str, ...]:
    name, factor = NAMES[row.quantity]
    figures = (number(row.a * factor), number(row.b * factor))
    return (row.load, name, *figures, str(row.verdict), f"{row.verdict.p:.2g}", str(row.verdict.n))


def _run(name: str, results: Path, invalid_too: bool) -> Run:
    """A file, or a node's newest run. Raises: RunFileError, also for a run that must decide nothing."""
    path = Path(name)
    if not path.is_file():
        newest = runfile.newest(results, name, KIND)
        if newest is None:
            raise RunFileError(f"{name} is no file, and no node of {results} that has a run.")
        path = newest
    run = runfile.read(path, Run)
    if not run.is_valid and not invalid_too:
        why = "; ".join(dict.fromkeys(f"{mark.reason} ({mark.remedy})" for mark in run.marks if mark.is_invalid))
        raise RunFileError(f"{path} must decide nothing: {why}. Measure again, or give --invalid-too.")
    return run
