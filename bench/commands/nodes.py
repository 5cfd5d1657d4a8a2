"""What commands that speak to nodes have in common: which nodes, with which key, and how an interruption ends them."""

from __future__ import annotations

import functools
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import gevent
from gevent.event import Event

from bench import profile
from bench.client import Target
from bench.commands.values import Node
from bench.profile import ProfileError, TunedProfile

KEY_VARIABLE = "BENCH_KEY"
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Chosen:
    """The nodes of a command, the inventory's folder where there is one, and where run files lie."""

    targets: list[Target]
    inventory: Path | None
    results: Path

    def profiles(self) -> dict[str, TunedProfile]:
        """The nodes' profiles in the inventory; without those that are none, which writing one will tell."""
        found = {}
        for target in self.targets:
            try:
                known = profile.read(self.inventory, target.name) if self.inventory else None
            except ProfileError as error:
                click.echo(f"bench: {error}", err=True)
                continue
            if known is not None:
                found[target.name] = known
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While profiles may be written: no other bench may write any. Exits with 1 where one does."""
        if self.inventory is None:
            yield
            return
        try:
            with profile.locked(self.inventory):
                yield
        except ProfileError as error:
            raise click.ClickException(str(error)) from error


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which nodes; the command gets them as `chosen`."""

    @functools.wraps(command)
    def wrapper(
        *args: Any,
        nodes: Sequence[tuple[str, str]],
        inventory: Path | None,
        key_file: Path | None,
        results: Path,
        **others: Any,
    ) -> Any:
        targets = targets_of(nodes, key(key_file))
        return command(*args, chosen=Chosen(targets, inventory, results), **others)

    for option in reversed(OPTIONS):
        wrapper = option(wrapper)
    return wrapper


OPTIONS = (
    click.option("--node", "nodes", type=Node(), multiple=True, help="A node; may be given several times."),
    click.option(
        "-i", "--inventory", type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="The inventory's folder, in which host_vars lies.",
    ),
    click.option(
        "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=f"File with the nodes' API key; else the variable {KEY_VARIABLE} holds it.",
    ),
    click.option(
        "--results", type=click.Path(file_okay=False, path_type=Path), default=Path("bench/results"), show_default=True,
        help="Where run files go, a folder for each node.",
    ),
)  # fmt: skip


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
