"""What commands that speak to nodes have in common: which nodes, with which key, and how an interruption ends them."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import click
import gevent
from gevent.event import Event

from bench.client import Target

KEY_VARIABLE = "BENCH_KEY"
EXIT_INTERRUPTED = 130


def targets_of(nodes: Sequence[tuple[str, str]], api_key: str) -> list[Target]:
    if not nodes:
        raise click.UsageError("no node to measure; name one with --node http://HOST:8000.")
    names = [name for name, _ in nodes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise click.UsageError(f"--node: {twice} is given twice; tell nodes apart with NAME=URL.")
    return [Target(name, url.rstrip("/"), api_key) for name, url in nodes]


def key(key_file: Path | None) -> str:
    """One line of printable ASCII; it becomes a header."""
    try:
        found = os.environ.get(KEY_VARIABLE, "") if key_file is None else key_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--key-file: {key_file} cannot be read: {error}.") from error
    found = found.strip()
    if not found:
        place = f"{key_file} is empty" if key_file else f"neither --key-file nor {KEY_VARIABLE} is given"
        raise click.UsageError(f"no API key: {place}.")
    if not (found.isascii() and found.isprintable() and " " not in found):
        raise click.UsageError(f"{'--key-file' if key_file else KEY_VARIABLE}: what it holds is no API key, but more.")
    return found


def allow_many_files() -> None:
    """A node takes a socket a client and a lock, and the usual limit of 1024 files is soft."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def stop_on_signals(interrupt: Event) -> None:
    """The first Ctrl-C or SIGTERM ends the measuring and writes what there is; the second ends at once."""

    def stop() -> None:
        if interrupt.is_set():
            os._exit(EXIT_INTERRUPTED)
        click.echo("interrupted: keeping what was measured …", err=True)
        interrupt.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(signum, stop)
