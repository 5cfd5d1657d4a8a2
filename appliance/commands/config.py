"""`appliance config …`: what the settings are, where each came from, and whether a file of them is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from appliance.commands.profile import profile_option
from appliance.config import SETTINGS
from appliance.sources import ConfigError, Loaded, load

BEGIN = "<!-- settings: begin (`appliance config docs --write FILE` writes what is between the marks) -->"
END = "<!-- settings: end -->"
WRONG = 2  # the exit status when settings are wrong; the same as click's for a wrong command line


@click.group()
def command() -> None:
    """Show and check the settings of this node."""


@command.command()
@profile_option("A profile to read.")
@click.option("--json", "as_json", is_flag=True, help="Print an object with value, unit and source of each name.")
def show(profile: Path | None, as_json: bool) -> None:
    """Print each setting with its value, its unit and where it came from.

    Reads what `appliance serve` would read here: the environment, .env and the profile. Secrets are masked.
    Exits with 2 and names every problem when the settings are wrong.
    """
    try:
        loaded = load(profile)
    except ConfigError as error:
        _refuse(error)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(as_object(loaded)), indent=2))
        return
    click.echo(aligned(as_rows(loaded)))


@command.command()
@click.argument("profile", type=click.Path(path_type=Path), metavar="FILE")
def check(profile: Path) -> None:
    """Judge a profile by itself: its lines, names and values, with the defaults for what it leaves out.

    The environment and .env of this shell play no part. Exits with 0 and one line when the file is right,
    with 2 and every problem when it is not.
    """
    try:
        loaded = load(profile, {}, None)
    except ConfigError as error:
        _refuse(error)
    named = sum(source != "default" for source in loaded.sources.values())
    click.echo(f"{profile}: {named} of {len(SETTINGS)} settings, all valid.")


@command.command()
@click.option(
    "--write",
    "page",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Put the table into this file, between its marks, in place of the old one.",
)
def docs(page: Path | None) -> None:
    """Print the table of all settings, in Markdown."""
    if page is None:
        click.echo(table())
        return
    page.write_text(with_table(page.read_text()))


def as_object(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Name -> value (of a secret: its mask), unit or null, source."""
    return {
        name: {
            "value": row.masked(loaded.config),
            "unit": row.unit or None,
            "source": loaded.sources[name],
        }
        for name, row in SETTINGS.items()
    }


def as_rows(loaded: Loaded) -> list[tuple[str, ...]]:
    return [(name, text(row.masked(loaded.config)), row.unit, loaded.sources[name]) for name, row in SETTINGS.items()]


def text(value: Any) -> str:
    """A value as one writes it in a profile."""
    if value is None or value == "":
        return "(not set)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Columns of equal width, two blanks apart, without blanks at the ends of lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def table() -> str:
    """The settings in Markdown: name, default, allowed, unit, meaning."""
    head = ["| Name | Default | Allowed | Unit | Meaning |", "|---|---|---|---|---|"]
    rows = [
        f"| `{row.name}` | {_code(row.default)} | {row.allowed} | {row.unit} | {row.meaning} |"
        for row in SETTINGS.values()
    ]
    return "\n".join(head + rows)


def with_table(page: str) -> str:
    """The page with the table of now between its marks. Raises: click.ClickException if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"The file has no lines {BEGIN} and {END}.")
    return f"{before}{begin}\n{table()}\n{end}{after}"


def _code(default: Any) -> str:
    shown = text(default)
    return "" if shown == "(not set)" else f"`{shown}`"


def _refuse(error: ConfigError) -> NoReturn:
    click.echo(str(error), err=True)
    raise click.exceptions.Exit(WRONG)
