"""`bench show`: the fleet as a table."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click
import msgspec

from bench import show
from bench.commands.looking import look
from bench.commands.nodes import Chosen, allow_many_files, node_options


@click.command(
    epilog="Exit status: 0 shown; 1 a node does not answer or its profile cannot be read, the others are "
    "shown; 2 wrong usage."
)
@node_options
@click.option("--offline", is_flag=True, help="Ask no node; show what was measured and written.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(chosen: Chosen, offline: bool, as_json: bool) -> None:
    """Show each node: board, model, decode speed with its 95 % interval, throttling, and what its profile is worth.

    Figures are of the node's newest valid `bench run`, without one of its newest tune or verification; its profile is
    the inventory's.
    """
    allow_many_files()
    now = datetime.now(UTC)
    rows = [
        show.row(s.name, s.facts, s.profile, s.run or s.blocks, now, s.problem, s.profile_problem)
        for s in look(chosen, not offline)
    ]
    if as_json:
        click.echo(msgspec.json.encode({"nodes": rows}))
    else:
        click.echo(show.table(rows))
    sys.exit(1 if any(row.problem or row.profile_problem for row in rows) else 0)
