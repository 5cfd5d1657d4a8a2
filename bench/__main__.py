"""The command line, `bench COMMAND …`; a command's module is imported when it runs."""

from __future__ import annotations

from importlib import import_module

import click

from appliance import __version__

COMMANDS = {
    "run": "Put load on nodes, and measure what they make of it.",
    "tune": "Find the settings that suit each node, and write them into the inventory.",
    "verify": "Measure whether a new profile helped, and put back what did not.",
    "compare": "Two runs beside each other, load by load.",
    "show": "The fleet as a table.",
    "doctor": "What is wrong with the fleet: drift, stale profiles, throttling, outliers.",
    "report": "Write one HTML file of all that was measured.",
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"bench.commands.{cmd_name}").command
        return command


@click.command(cls=LazyGroup)
@click.version_option(__version__, prog_name="bench")
def main() -> None:
    """Measures the nodes of a fleet, finds the settings that suit each, and proves that they helped."""


if __name__ == "__main__":
    main()
