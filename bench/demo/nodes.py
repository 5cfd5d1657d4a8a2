"""Both nodes of the demo: their folder, their ports, one key for the two, and how they take on new settings.

Everything in the folder is made anew at every start; that the inventory's profiles of an earlier demo go as well is
seen to by whoever starts it. Must not know: what the nodes are wanted for.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from appliance import fleetkeys
from appliance.fleetkeys import FleetKey, FleetKeys
from appliance.key import digest, joined, new_parts, pepper_check
from appliance.keys import KeyStore
from bench.demo import node as nodes_of
from bench.demo.failed import DemoFailed
from bench.demo.node import HOST, POLL_S, DemoNode
from bench.demo.pidfile import PidFile

NAMES = ("demo1", "demo2")
OWNER = "demo"
RESTART = signal.SIGUSR1
RESTART_TIMEOUT_S = 60.0
DOWN_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Where:
    """folder: logs, keys, databases, results. inventory: whose host_vars the profiles belong to. Each node has a port,
    the first the one given and the second the next."""

    folder: Path
    inventory: Path
    port: int
    engine_port: int

    @property
    def key_file(self) -> Path:
        return self.folder / "key"

    @property
    def pepper_file(self) -> Path:
        return self.folder / "pepper"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def profiles(self) -> dict[str, Path]:
        """Where each node's profile is, or would be."""
        return {name: self.inventory / "host_vars" / name / "tuned.yml" for name in NAMES}

    @property
    def ports(self) -> dict[int, str]:
        """What each is for, and how another is chosen."""
        found = {self.port + k: f"{name} (PORT)" for k, name in enumerate(NAMES)}
        return found | {self.engine_port + k: f"the engine of {name} (ENGINE_PORT)" for k, name in enumerate(NAMES)}


class Nodes:
    """The running nodes; one process owns them."""

    def __init__(self, where: Where) -> None:
        cores = _cores(len(NAMES))
        self._is_asked = False
        self._where = where
        self.nodes = [
            DemoNode(name, where.folder / name, where.port + k, where.engine_port + k, cores[k], where.pepper_file)
            for k, name in enumerate(NAMES)
        ]

    def start(self) -> None:
        """Raises: DemoFailed."""
        signal.signal(RESTART, self._ask)
        _make_keys(self._where, self.nodes)
        for each in self.nodes:
            click.echo(
                f"{each.name}      http://{HOST}:{each.port}, its engine on port {each.engine_port}, core {each.core}"
            )
            each.start()

    def stop(self) -> None:
        for each in self.nodes:
            each.stop()

    def tend(self) -> None:
        """Restart those whose settings have changed, where that was asked for. Raises: DemoFailed."""
        for each in self.nodes:
            each.require_alive()
        if not self._is_asked:
            return
        self._is_asked = False
        for each in self.nodes:
            if each.settings != each.running:
                each.stop()
                each.start()

    def tend_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self.tend()
            time.sleep(POLL_S)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True


@contextmanager
def owned(where: Where) -> Iterator[Nodes]:
    """Nodes that are not started yet, of a demo that is the only one in its folder; at the end they are stopped.

    Raises: DemoFailed where another demo runs, and where a port is taken; nothing was changed then.
    """
    _refuse_impossible(where)
    where.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with PidFile(where.folder / "demo.pid").held() as is_held:
        if not is_held:
            raise DemoFailed("a demo runs already in this folder; `make demo-down` ends it.")
        for name in NAMES:
            nodes_of.end_leftovers(where.folder / name)
        _refuse_taken(where)
        _clear(where)
        nodes = Nodes(where)
        try:
            yield nodes
        finally:
            nodes.stop()


def down(folder: Path) -> bool:
    """End the demo of a folder, and what a killed one left. Whether there was anything. Raises: DemoFailed."""
    pid_file = PidFile(folder / "demo.pid")
    pid = pid_file.read()
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        ends_at = time.monotonic() + DOWN_TIMEOUT_S
        while pid_file.read() == pid:
            if time.monotonic() > ends_at:
                raise DemoFailed(f"process {pid} has not ended within {DOWN_TIMEOUT_S:g} s.")
            time.sleep(POLL_S)
    left = [nodes_of.end_leftovers(folder / name) for name in NAMES]
    return pid is not None or any(left)


def restart(folder: Path, name: str) -> bool:
    """Have the running demo take a node's new settings. Whether that needed a restart. Raises: DemoFailed."""
    pid = PidFile(folder / "demo.pid").read()
    if pid is None:
        raise DemoFailed("no demo runs; `make demo-up` starts its nodes.")
    home, key = folder / name, (folder / "key").read_text().strip()
    port, wanted = int((home / "port").read_text()), nodes_of.settings_of(home)
    if nodes_of.in_force(port, key) == wanted:
        return False
    ends_at = time.monotonic() + RESTART_TIMEOUT_S
    os.kill(pid, RESTART)
    while nodes_of.in_force(port, key) != wanted:
        if time.monotonic() > ends_at or PidFile(folder / "demo.pid").read() != pid:
            raise DemoFailed(f"{name} did not come back with its new settings; its logs are in {home}.")
        time.sleep(POLL_S)
    return True


def fetch_model() -> None:
    """The model's download, once a machine; the engine tells of it on standard error. Raises: DemoFailed."""
    fetch = [sys.executable, "-m", "appliance", "engine", "--fetch-only"]
    if subprocess.run(fetch, stdout=subprocess.DEVNULL, check=False).returncode:
        raise DemoFailed("without its model the engine cannot run.")


def _make_keys(where: Where, nodes: Sequence[DemoNode]) -> None:
    """One key that works on all nodes, as keys.yml gives it: a pepper for the fleet, digests to the nodes."""
    pepper, (key_id, secret) = secrets.token_hex(32), new_parts()
    _write_secret(where.pepper_file, pepper)
    _write_secret(where.key_file, joined(key_id, secret))
    key = FleetKey(id=key_id, digest=digest(pepper.encode(), secret).hex(), owner=OWNER)
    document = FleetKeys(keys=[key], pepper_check=pepper_check(pepper.encode()).hex())
    for each in nodes:
        each.prepare()
        store = KeyStore(each.home / "api_keys.db", pepper.encode())
        fleetkeys.sync(document, store)
        store.close()


def _clear(where: Where) -> None:
    """Take away what an earlier demo made."""
    for path in (*(where.folder / name for name in NAMES), where.results):
        shutil.rmtree(path, ignore_errors=True)
    for profile in where.profiles.values():
        for file in (profile, *profile.parent.glob(".tuned.*")):
            file.unlink(missing_ok=True)


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


def _cores(count: int) -> list[int]:
    """A core for each node: the first and the last, since two threads of one core stand beside each other, or half the
    list apart."""
    mine = sorted(os.sched_getaffinity(0))
    return [mine[(len(mine) - 1) * k // max(1, count - 1)] for k in range(count)]


def _refuse_impossible(where: Where) -> None:
    if len(where.ports) < 2 * len(NAMES) or max(where.ports) > 65535:
        raise DemoFailed(
            f"ports {where.port} and {where.engine_port}: each node needs two of its own, the given number and "
            "the next one, up to 65535."
        )


def _refuse_taken(where: Where) -> None:
    """All that are taken in one message. Raises: DemoFailed."""
    taken = {port: why for port in where.ports if (why := _why_taken(port))}
    if not taken:
        return
    said = "; ".join(f"port {port} for {where.ports[port]}: {why}" for port, why in taken.items())
    free = _free_pairs()
    raise DemoFailed(f"{said}. Choose others: make demo PORT={free[0]} ENGINE_PORT={free[1]}")


def _why_taken(port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _free_pairs() -> list[int]:
    """Two ports of which the next is free as well."""
    found: list[int] = []
    for port in range(8100, 60000, 10):
        if not _why_taken(port) and not _why_taken(port + 1):
            found.append(port)
        if len(found) == 2:
            break
    return found
