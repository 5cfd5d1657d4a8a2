"""`bench report`: one HTML file of all that was measured."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click
import msgspec

from bench import wholefile
from bench.inventory.fleet import DEFAULT, folder_of
from bench.report.data import gathered
from bench.report.page import page


@click.command(
    epilog="Exit status: 0 written; 1 nothing was measured yet, or the file cannot be written; 2 wrong usage. Files "
    "that cannot be read are named in the report and here, and keep no other out of it."
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench/results"),
    show_default=True,
    help="Where run files lie, a folder for each node.",
)
@click.option(
    "-i",
    "--inventory",
    "inventories",
    multiple=True,
    metavar="INVENTORY",
    help="For the nodes' profiles; may be given several times. [this project's own]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write. [RESULTS/report.html]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def command(results: Path, inventories: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Write one HTML file of all that was measured: it opens from disk, and loads nothing from anywhere.

    The fleet side by side, and of each node: throughput and latency under each load, what its tune found, its history,
    and what speaks against a run.
    """
    found = gathered(results, [folder for source in inventories or [str(DEFAULT)] if (folder := folder_of(source))])
    problems = [why for _, why in found.unreadable]
    for problem in problems:
        click.echo(f"bench: {problem}", err=True)
    if not found.nodes:
        raise click.ClickException(f"no results in {results}; `bench run` writes them, --results names their folder.")
    path = output or results / "report.html"
    try:
        wholefile.put(page(found, datetime.now().astimezone(), str(results)).encode(), path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}; name another file with -o.") from error
    if as_json:
        nodes = [node.name for node in found.nodes]
        click.echo(msgspec.json.encode({"file": str(path), "nodes": nodes, "problems": problems}))
        return
    click.echo(f"{path}: {len(found.nodes)} node{'s' if len(found.nodes) != 1 else ''}")
