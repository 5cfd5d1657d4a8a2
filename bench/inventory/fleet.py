"""The nodes of an inventory, as Ansible sees it: where each is reached, with which key, and where its profile belongs.

Ansible itself is asked, so every inventory plugin, vault and variable works as in a play: `ansible-inventory` once for
the whole fleet, and once more, only where what is wanted is a template or an encrypted value, which it leaves as it is,
a local play that renders those. Secrets go through pipes, never into arguments, files, messages or `repr`.
Must not know: what nodes are asked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.inventory.tuned_file import NAME
from bench.knobs import INVENTORY
from bench.running.client import Target

GROUP = "nodes"
DEFAULT = INVENTORY / "hosts.yml"
PLAYBOOKS = INVENTORY.parent / "ansible"
PORT = 8000
WANTED = ("ansible_host", "appliance_port", "bench_url", "keys_fleet", "vault_keys")
NO_KEYS = "{{ vault_keys | default([]) }}"  # keys_fleet as inventory/group_vars/all/links.yml sets it
OWNER = "bench"
# What a person's own configuration must not change: Ansible's log would hold the keys that are printed to us.
ENVIRONMENT = {
    "ANSIBLE_LOG_PATH": os.devnull,
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_FORCE_COLOR": "0",
    "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
    "ANSIBLE_LOAD_CALLBACK_PLUGINS": "0",
    "ANSIBLE_INVENTORY_UNPARSED_FAILED": "1",
}
RENDER = (
    "{% set found = {} %}{% for node in bench__nodes %}{% set its = hostvars[node] %}{% set _ = found.update({node: {"
    + ", ".join(f'"{name}": its.{name} | default(none)' for name in WANTED)
    + "}}) %}{% endfor %}{{ found }}"
)
WORDS_CHARS = 1000
NEVER = re.compile(r"[^\x21-\x7e]")


class FleetError(Exception):
    """The inventory gives no fleet; the message says what to do."""


@dataclass(frozen=True)
class Vault:
    """How encrypted values are read: files as `ansible-playbook --vault-password-file` takes them, ids as its
    --vault-id, and a password that was asked for."""

    files: tuple[Path, ...] = ()
    ids: tuple[str, ...] = ()
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Node:
    """inventory: the folder whose host_vars has or gets this node's tuned.yml; None for a node of no file."""

    target: Target
    inventory: Path | None

    @property
    def name(self) -> str:
        return self.target.name


@dataclass(frozen=True)
class Fleet:
    """problems: why a node of the inventory cannot be asked anything, by its name; the others can."""

    nodes: tuple[Node, ...]
    problems: dict[str, str]

    @property
    def targets(self) -> list[Target]:
        return [node.target for node in self.nodes]


Run = Callable[[list[str], Vault], str]


def load(
    inventories: Sequence[str] = (),
    *,
    limit: str | None = None,
    key: str | None = None,
    vault: Vault | None = None,
    run: Run | None = None,
) -> Fleet:
    """The nodes of these inventories, in Ansible's order.

    inventories: as `ansible-playbook -i` takes them; without any those of ANSIBLE_INVENTORY, or this project's own.
    limit: as --limit. key: for all nodes, in place of the inventory's keys.

    1. The hosts of the group `nodes`. 2. At bench_url, or else at ansible_host (or the name) and appliance_port.
    3. With the key that was given, or else one of the inventory's: `bench`'s own, or the first that is valid.

    Raises: FleetError.
    """
    sources = list(inventories) or _default_sources()
    call = run or run_ansible
    vault = vault or Vault()
    options = [part for source in sources for part in ("-i", source)]
    options += ["--playbook-dir", str(PLAYBOOKS)] if PLAYBOOKS.is_dir() else []
    told = _json(call(["ansible-inventory", *options, "--list", *(["--limit", limit] if limit else [])], vault))
    names = list(members(told, GROUP))
    if not names:
        where = ", ".join(sources)
        raise FleetError(
            f"no node of {where} matches {limit!r}."
            if limit
            else f"{where} has no nodes: write your machines' "
            f"addresses under the group '{GROUP}'; inventory/hosts.yml shows how."
        )
    hosts = told.get("_meta", {}).get("hostvars", {})
    found = {name: {each: hosts.get(name, {}).get(each) for each in WANTED} for name in names}
    rendered = [name for name in names if any(_needs_rendering(value) for value in found[name].values())]
    if rendered:
        found |= _rendered(rendered, options, call, vault)
    return _fleet(found, folders_of(sources), key)


def folders_of(inventories: Sequence[str]) -> list[Path]:
    """The folders that have host_vars in them, or would."""
    return [folder for source in inventories or _default_sources() if (folder := folder_of(source))]


def members(told: Mapping[str, Any], group: str) -> Iterator[str]:
    """The hosts of a group and of the groups below it, each once."""
    seen: set[str] = set()
    hosts: dict[str, None] = {}
    waiting = [group]
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        rows = told.get(name) or {}
        hosts |= dict.fromkeys(rows.get("hosts", ()))
        waiting += rows.get("children", ())
    yield from hosts


def key_of(entries: Any, today: str) -> str | None:
    """The key to use out of `vault_keys`. today: as 2026-01-31; a key's last day is one on which it works."""
    if not isinstance(entries, list):
        return None
    valid = [
        entry
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("key"), str)
        and not NEVER.search(entry["key"])
        and str(entry.get("expires_at") or today)[: len(today)] >= today
    ]
    best = sorted(valid, key=lambda entry: entry.get("owner") != OWNER)
    return best[0]["key"] if best else None


def url_of(name: str, variables: Mapping[str, Any]) -> str:
    """Raises: FleetError for what is no address."""
    if given := variables.get("bench_url"):
        url = str(given).rstrip("/")
    else:
        host = str(variables.get("ansible_host") or name)
        port = variables.get("appliance_port") or PORT
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_url = False
    if not is_url or NEVER.search(url):
        raise FleetError(f"{name}: {url[:100]!r} is no address; correct ansible_host, appliance_port or bench_url.")
    return url


def folder_of(source: str) -> Path | None:
    """The folder of an inventory's group_vars and host_vars; None for a list of hosts, which has none."""
    if "," in source:
        return None
    path = Path(source).resolve()
    return path if path.is_dir() else path.parent


def _fleet(found: Mapping[str, Mapping[str, Any]], folders: Sequence[Path], key: str | None) -> Fleet:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    nodes, problems = [], {}
    for name, variables in found.items():
        try:
            own = key or key_of(variables["vault_keys"], today) or key_of(variables["keys_fleet"], today)
            if own is None:
                raise FleetError(
                    f"{name}: no API key: the inventory has no valid one in vault_keys. Make one on the node with "
                    "`pi-llm keys create --owner bench`, and give it with --key-file."
                )
            nodes.append(Node(Target(name, url_of(name, variables), own), _home(name, folders)))
        except FleetError as error:
            problems[name] = str(error)
    return Fleet(tuple(nodes), problems)


def _home(name: str, folders: Sequence[Path]) -> Path | None:
    """Where this node's profile is, or belongs: where one is, where host_vars knows the node, the first inventory.

    Raises: FleetError where two inventories have one: which is meant, nobody could tell.
    """
    having = [folder for folder in folders if (folder / "host_vars" / name / NAME).exists()]
    if len(having) > 1:
        raise FleetError(f"{name} has a {NAME} in {having[0]} and in {having[1]}; delete one of the two.")
    knowing = [folder for folder in folders if (folder / "host_vars" / name).is_dir()]
    return next(iter([*having, *knowing, *folders]), None)


def _needs_rendering(value: Any) -> bool:
    if isinstance(value, str):
        return value != NO_KEYS and ("{{" in value or "{%" in value)
    if isinstance(value, dict):
        return "__ansible_vault" in value or any(_needs_rendering(inner) for inner in value.values())
    return isinstance(value, list) and any(_needs_rendering(inner) for inner in value)


def _rendered(names: list[str], options: list[str], call: Run, vault: Vault) -> dict[str, dict[str, Any]]:
    """The wanted variables of these nodes as a play has them."""
    with tempfile.NamedTemporaryFile("w", prefix="bench-nodes-", suffix=".json") as file:
        json.dump({"bench__nodes": names}, file)
        file.flush()
        task = ["-m", "ansible.builtin.debug", "-a", json.dumps({"msg": RENDER})]
        said = call(["ansible", "localhost", *options, "-e", f"@{file.name}", *task], vault)
    found: dict[str, dict[str, Any]] = _json(said.partition("=> ")[2])["msg"]
    return found


def _default_sources() -> list[str]:
    named = [source for source in os.environ.get("ANSIBLE_INVENTORY", "").split(",") if source.strip()]
    return named or [str(DEFAULT)]


def _json(text: str) -> dict[str, Any]:
    """Raises: FleetError, without the text: it may hold secrets."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FleetError("Ansible did not answer with the inventory. Does `ansible-inventory --list` work here?")
    return found


def run_ansible(command: list[str], vault: Vault) -> str:
    """What it prints. Raises: FleetError with its own words."""
    with vault_options(vault) as (options, handles):
        done = subprocess.run(
            [program(command[0]), *command[1:], *options],
            capture_output=True,
            text=True,
            env={**os.environ, **ENVIRONMENT},
            pass_fds=handles,
        )
    if done.returncode != 0:
        raise FleetError(_why(command[0], done.stderr))
    return done.stdout


@contextmanager
def vault_options(vault: Vault) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """What tells a program of Ansible how to decrypt, and the file handles that it must inherit for it."""
    with _password_pipe(vault.password) as pipe:
        files = [str(path) for path in vault.files] + ([f"/dev/fd/{pipe}"] if pipe is not None else [])
        options = [part for path in files for part in ("--vault-password-file", path)]
        options += [part for vault_id in vault.ids for part in ("--vault-id", vault_id)]
        yield options, () if pipe is None else (pipe,)


def program(name: str) -> str:
    """Beside this Python, where `make fleet` puts it, or on the PATH. Raises: FleetError."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FleetError(f"{name} is not installed here; `make fleet` installs it, or name nodes with --node.")
    return found


@contextmanager
def _password_pipe(password: str | None) -> Iterator[int | None]:
    """A pipe with the password in it, for a program that reads passwords from files."""
    if password is None:
        yield None
        return
    reading, writing = os.pipe()
    try:
        os.write(writing, password.encode() + b"\n")
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


def _why(program: str, stderr: str) -> str:
    """Ansible's own last words in one message, with a remedy where it gives none."""
    if "no vault secrets found" in stderr or "Decryption failed" in stderr:
        return (
            "the inventory has encrypted variables that were not decrypted; give the vault's password with "
            "--vault-password-file FILE or --ask-vault-pass."
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = [next((line for line in lines if part in line), "") for part in ("Failed to parse", "Origin:", "Unable to")]
    errors = [line for line in lines if line.startswith(("[ERROR]", "ERROR!"))]
    words = " ".join(word for word in [*said, *errors] if word) or (lines or ["it does not say why"])[-1]
    return f"{program} could not read the inventory: {words[:WORDS_CHARS]}"
