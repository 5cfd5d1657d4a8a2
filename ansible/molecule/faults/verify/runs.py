"""Playbooks that are interfered with: what they say, when they come to a task, and how they are killed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hosts import fleet, podman
from tests.hosts.fleet import Node

SCENARIO = "faults"
INVENTORY = fleet.folder_of(SCENARIO) / "inventory"
WATCH_S = 300  # an event that has not come by then will not come


class Run:
    """A playbook in the background, in a process group of its own and without a terminal."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.told = INVENTORY.with_name(f"said-{time.time_ns()}-{name}.log")
        with self.told.open("w") as told:
            self.process = subprocess.Popen(
                fleet.playbook(SCENARIO, name, *arguments),
                cwd=fleet.PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Else a task is only told when a node is through with it.
                env=os.environ | {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"},
            )

    @property
    def said(self) -> str:
        """Everything it said until now, in one line and without YAML's quotes, since sentences are wrapped."""
        return " ".join(self.told.read_text(errors="replace").split()).replace("''", "'")

    def reach(self, task: str) -> None:
        """Return when a task begins, on the node or for it."""
        self._await(lambda: f"TASK [{task}]" in self.said, task)

    def reach_on(self, node: Node, condition: str, freeze: str = "") -> None:
        """Return when a condition of the shell becomes true on a node; the programs of that name then stand still."""
        # It ends with its standard input, so that none is left to freeze what a later run starts.
        watch = f"until {condition}; do read -rt 0.02; [ $? -gt 128 ] || exit 1; done >/dev/null 2>&1"
        stop = f"; kill -STOP $(pgrep -x {freeze})" if freeze else ""
        watcher = subprocess.Popen(
            podman.ssh_command(node.name, [f"sudo bash -c {shlex.quote(watch + stop)}"]), stdin=subprocess.PIPE
        )
        try:
            self._await(lambda: watcher.poll() is not None, condition)
        finally:
            watcher.kill()
            watcher.communicate()
        status = watcher.returncode
        assert status == 0, f"{freeze or condition} could not be caught"

    def _await(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WATCH_S
        while not happened():
            assert self.process.poll() is None, f"it ended before {what!r}: {self.said[-3000:]}"
            assert time.monotonic() < deadline, f"it did not come to {what!r}: {self.said[-3000:]}"
            time.sleep(0.02)

    def kill(self) -> None:
        """The controller dies: nothing of Ansible has a last word."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> str:
        """Wait for its end, which must be a failure. Returns: what it said."""
        assert self.process.wait() != 0, self.said[-3000:]
        return self.said

    def fail(self) -> str:
        """Wait for its end, which must be a failure with a reason. Returns: what it said."""
        self.end()
        assert "Traceback" not in self.said
        return self.said

    def succeed(self) -> str:
        """Wait for its end, which must be a success. Returns: what it said."""
        assert self.process.wait() == 0, self.said[-6000:]
        return self.said


def serves(node: Node) -> bool:
    """Whether the playbook that verifies finds nothing to mend, a generation included."""
    said = Run("verify.yml", f"--limit={node.name},localhost").succeed()
    return re.search(rf" {node.name} (\S+ ){{9}}as it should be", said) is not None  # the node's line of the table


def state_of(node: Node) -> set[str]:
    """Every file that a role could touch, with the time of its last change of any kind, and what is installed."""
    skipped = "-path /var/lib/systemd -o -path /var/lib/apt -o -name .ansible"
    files = f"find /etc /opt /usr/local /var/lib /home -xdev \\( {skipped} \\) -prune -o -printf '%p %C@\\n'"
    return set(
        node.sh(f"{files}; systemctl list-units --type=service --plain --no-legend | cut -d' ' -f1").splitlines()
    )


def host_vars(node: Node) -> Path:
    """The folder of a node's own settings, made when missing."""
    folder = INVENTORY / "host_vars" / node.name
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def vaulted(folder: Path, variables: dict[str, Any]) -> Iterator[Path]:
    """An encrypted file of secrets among the inventory's. Gives the file of its password, which lies in the folder."""
    password, file = folder / "password", INVENTORY / "group_vars/nodes/vault.yml"
    password.write_text("right\n")
    file.write_text(json.dumps(variables))
    program = Path(fleet.playbook(SCENARIO, "")[0]).with_name("ansible-vault")
    subprocess.run([program, "encrypt", "--vault-password-file", password, file], check=True, capture_output=True)
    try:
        yield password
    finally:
        file.unlink()


def cut(node: Node, run: Run) -> None:
    """Take the power away until Ansible has noticed: a node that boots faster would go on as if nothing had been."""
    podman.off(node.name)
    assert f"fatal: [{node.name}]: UNREACHABLE!" in run.end()
    podman.on(node.name)
