"""How a Ctrl-C ends a command that measures, and how `--resume` goes on with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection

import click
import gevent
from click.core import ParameterSource
from gevent.event import Event

from bench.tuning import deploy

EXIT_INTERRUPTED = 130


def by_signals() -> Event:
    """Set by the first Ctrl-C or SIGTERM, which ends the measuring and keeps what there is; the second ends at once."""
    interrupt = Event()

    def stop() -> None:
        if interrupt.is_set():
            deploy.end_all()
            os._exit(EXIT_INTERRUPTED)
        click.echo("interrupted: keeping what was measured, --resume goes on with it; once more ends at once", err=True)
        interrupt.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(signum, stop)
    return interrupt


def refuse_beside_resume(ctx: click.Context, names: Collection[str]) -> None:
    """What is resumed goes on as it was begun. Raises: click.UsageError for one of these options."""
    for option in ctx.command.params:
        name = option.name or ""
        if name in names and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--resume goes on as it was begun; leave {option.opts[0]} out.")
