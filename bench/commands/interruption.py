"""How a Ctrl-C ends a command that measures, and how `--resume` goes on with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress

import click
import gevent
from click.core import ParameterSource
from gevent.event import Event

from bench.tuning import deploy

EXIT_INTERRUPTED = 130


def by_signals() -> Event:
    """Set by the first Ctrl-C or SIGTERM, which ends the measuring and keeps what there is; the second ends at once.

    SIGHUP, of an SSH session that dropped, is a first one only: it may come twice, from the kernel and from the shell.
    Under nohup it stays without effect.
    """
    interrupt = Event()

    def stop() -> None:
        if interrupt.is_set():
            deploy.end_all()
            _show_cursor()
            os._exit(EXIT_INTERRUPTED)
        interrupt.set()
        with suppress(OSError):  # the terminal may be gone
            click.echo(
                "interrupted: keeping what was measured, --resume goes on with it; once more ends at once", err=True
            )

    def hang_up() -> None:
        if not interrupt.is_set():
            stop()

    for signum in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(signum, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        gevent.signal_handler(signal.SIGHUP, hang_up)
    return interrupt


def _show_cursor() -> None:
    """Rich hides it while it draws, and is not to come to its end."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h")


def refuse_beside_resume(ctx: click.Context, names: Collection[str]) -> None:
    """What is resumed goes on as it was begun. Raises: click.UsageError for one of these options."""
    for option in ctx.command.params:
        name = option.name or ""
        if name in names and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--resume goes on as it was begun; leave {option.opts[0]} out.")
