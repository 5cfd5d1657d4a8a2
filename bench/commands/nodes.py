"""What commands that speak to nodes have in common: which nodes, and with which key."""

from __future__ import annotations

import functools
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from bench.commands.values import Node
from bench.inventory import fleet, tuned_file
from bench.inventory.fleet import Fleet, FleetError, Vault, folder_of
from bench.inventory.tuned_file import ProfileError
from bench.inventory.tuned_profile import TunedProfile
from bench.running.client import Target
from bench.tuning.deploy import Playbook

KEY_VARIABLE = "BENCH_KEY"


@dataclass(frozen=True)
class Chosen:
    """The nodes of a command, where their profiles and their run files belong, and how they are deployed to."""

    fleet: Fleet
    results: Path
    inventories: tuple[str, ...]
    vault: Vault

    @property
    def targets(self) -> list[Target]:
        return self.fleet.targets

    @property
    def problems(self) -> dict[str, str]:
        """Why a node of the inventory cannot be asked anything, by its name."""
        return self.fleet.problems

    @property
    def has_inventory(self) -> bool:
        return any(node.inventory for node in self.fleet.nodes)

    def playbook(self) -> Playbook:
        return Playbook(self.inventories, self.vault)

    def inventory_of(self, name: str) -> Path | None:
        return next((node.inventory for node in self.fleet.nodes if node.name == name), None)

    def profiles(self) -> dict[str, TunedProfile]:
        """The nodes' profiles in the inventory; without those that are none, which writing one will tell."""
        return self.read_profiles()[0]

    def read_profiles(self) -> tuple[dict[str, TunedProfile], dict[str, str]]:
        """The nodes' profiles in the inventory, and why a node's file is none, a sentence each; both by name."""
        found, problems = {}, {}
        for node in self.fleet.nodes:
            try:
                known = tuned_file.read(node.inventory, node.name) if node.inventory else None
            except ProfileError as error:
                problems[node.name] = str(error)
                continue
            if known is not None:
                found[node.name] = known
        return found, problems

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While profiles may be written: no other bench may write any. Exits with 1 where one does."""
        folders = sorted({node.inventory for node in self.fleet.nodes if node.inventory})
        with ExitStack() as stack:
            for folder in folders:
                try:
                    stack.enter_context(tuned_file.locked(folder))
                except ProfileError as error:
                    raise click.ClickException(str(error)) from error
            yield


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which nodes; the command gets them as `chosen`."""

    @functools.wraps(command)
    def wrapper(
        *args: Any,
        nodes: Sequence[tuple[str, str]],
        inventories: tuple[str, ...],
        limit: str | None,
        key_file: Path | None,
        results: Path,
        vault_password_files: tuple[Path, ...],
        vault_ids: tuple[str, ...],
        ask_vault_pass: bool,
        **others: Any,
    ) -> Any:
        password = click.prompt("Vault password", hide_input=True, err=True) if ask_vault_pass else None
        vault = Vault(vault_password_files, vault_ids, password)
        found = _fleet(nodes, inventories, limit, key_file, vault)
        return command(*args, chosen=Chosen(found, results, inventories, vault), **others)

    for option in reversed(OPTIONS):
        wrapper = option(wrapper)
    return wrapper


OPTIONS = (
    click.option(
        "-i", "--inventory", "inventories", multiple=True, metavar="INVENTORY",
        help="As ansible-playbook takes it. [this project's own]",
    ),
    click.option("--limit", help="Some of the inventory's nodes, as ansible-playbook takes it."),
    click.option(
        "--node", "nodes", type=Node(), multiple=True,
        help="A node at this URL, in place of the inventory's; its profile belongs to the inventory only with -i.",
    ),
    click.option(
        "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=f"File with the nodes' API key; else the variable {KEY_VARIABLE}, else the inventory's vault_keys.",
    ),
    click.option(
        "--results", type=click.Path(file_okay=False, path_type=Path), default=Path("bench/results"), show_default=True,
        help="Where run files lie, a folder for each node.",
    ),
    click.option(
        "--vault-password-file", "vault_password_files", multiple=True, help="As ansible-playbook takes it.",
        type=click.Path(exists=True, path_type=Path),
    ),
    click.option("--vault-id", "vault_ids", multiple=True, help="As ansible-playbook takes it."),
    click.option("-J", "--ask-vault-pass", is_flag=True, help="Ask for the vault's password."),
)  # fmt: skip


def _fleet(
    nodes: Sequence[tuple[str, str]],
    inventories: tuple[str, ...],
    limit: str | None,
    key_file: Path | None,
    vault: Vault,
) -> Fleet:
    """The nodes that are named, or else those of the inventory. A node of no valid key is one of its problems."""
    if nodes:
        folder = folder_of(inventories[0]) if inventories else None
        named = tuple(fleet.Node(target, folder) for target in targets_of(nodes, key(key_file)))
        return Fleet(named, {})
    is_given = key_file is not None or os.environ.get(KEY_VARIABLE)
    own_key = key(key_file) if is_given else None
    try:
        return fleet.load(inventories, limit=limit, key=own_key, vault=vault)
    except FleetError as error:
        broken = tuned_file.no_yaml(fleet.folders_of(inventories))
        if not broken:
            raise click.UsageError(str(error)) from error
    # One such file keeps Ansible from reading any node; the others are to go on.
    others = ",".join([limit or "all", *(f"!{name}" for name in broken)])
    try:
        found = fleet.load(inventories, limit=others, key=own_key, vault=vault)
    except FleetError as error:
        raise click.UsageError("\n".join(broken.values())) from error
    return replace(found, problems=found.problems | broken)


def targets_of(nodes: Sequence[tuple[str, str]], api_key: str) -> list[Target]:
    if not nodes:
        raise click.UsageError("no node to measure; name one with --node http://HOST:8000.")
    ((most, count),) = Counter(name for name, _ in nodes).most_common(1)
    if count > 1:
        raise click.UsageError(f"--node: {most} is given twice; tell nodes apart with NAME=URL.")
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
