"""`appliance drain`: the running service takes nothing new, and this waits until it is idle."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import click

from appliance.commands.profile import profile_option
from appliance.commands.running import NotServing, RunningService, is_appliance

POLL_S = 0.25


@click.command()
@profile_option()
@click.option(
    "--wait", "wait_s", default=60.0, show_default=True, help="Seconds to wait until nothing runs; 0: do not."
)
@click.option("--if-running", is_flag=True, help="No service, or one that does not answer, is no error.")
def command(profile: Path | None, wait_s: float, if_running: bool) -> None:
    """Take no new generations; running ones finish, waiting ones are told to try again.

    /ready turns 503. `appliance resume` undoes it, and so does a restart. Exit status: 0 when nothing runs any more
    (or --wait 0), 1 when there is no service or it was still busy after --wait.
    """
    try:
        service = RunningService.find(profile)
        service.require_answer()
    except NotServing as nobody:
        if not if_running:
            raise
        click.echo(f"nothing to drain: {nobody.message}")
        return
    service.send(signal.SIGUSR1)
    if not wait_s:
        click.echo("told to drain")
        return
    ends_at = time.monotonic() + wait_s
    while (busy := _what_keeps(service)) is not None:
        if time.monotonic() > ends_at:
            raise click.ClickException(f"still busy after {wait_s:g} s: {busy}.")
        time.sleep(POLL_S)
    click.echo("draining: nothing runs, nothing new is taken")


def _what_keeps(service: RunningService) -> str | None:
    """Why it is not idle yet, or None. One that ended meanwhile is idle; one that is slow to answer may be busy."""
    try:
        reason, active = service.reason_not_ready(), service.active_requests()
    except NotServing as silence:
        return silence.message.rstrip(".") if is_appliance(service.pid) else None
    if reason != "draining":
        service.send(signal.SIGUSR1)  # again: a worker that was being made has not heard it
        return "it does not say that it drains"
    return f"{active} requests run" if active else None
