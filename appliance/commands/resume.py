"""`appliance resume`: the undo of `appliance drain`."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from appliance.commands.profile import profile_option
from appliance.commands.running import RunningService


@click.command()
@profile_option()
def command(profile: Path | None) -> None:
    """Take generations again after a drain. Exit status: 0, or 1 when there is no service."""
    service = RunningService.find(profile)
    service.require_answer()
    service.send(signal.SIGUSR2)
    click.echo("told to take generations again")
