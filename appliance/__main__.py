"""The command line, `appliance COMMAND …`; a command's module is imported when it runs, so serving stays light."""

from __future__ import annotations

from importlib import import_module

import click

from appliance import __version__

COMMANDS = {
    "config": "Show and check the settings of this node.",
    "drain": "Take no new generations; running ones finish.",
    "engine": "Run the embedded engine: a small real model behind Ollama's API.",
    "keys": "Create, list, revoke and rotate API keys.",
    "probe": "Prove that the service here answers: wait for it, then have it generate.",
    "resume": "Take generations again after a drain.",
    "serve": "Run the HTTP service.",
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"appliance.commands.{cmd_name}").command
        return command


@click.command(cls=LazyGroup)
@click.version_option(__version__, prog_name="appliance")
def main() -> None:
    """A local language model behind API keys, a fair bounded queue and streamed answers."""


if __name__ == "__main__":
    main()
