"""Settings that need a restart, brought onto a node by its own playbook.

The profile travels as an extra variable, which beats the inventory's, so no file of the inventory changes: whatever
kills this leaves the inventory as it was, and the next run of profile.yml puts the node right.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gevent import subprocess

from bench import knobs
from bench.inventory.fleet import FleetError, Vault, program, vault_options
from bench.running.client import BenchError
from bench.tuning.space import Value

PROJECT = Path(__file__).resolve().parents[2]
_running: set[int] = set()  # the process groups of playbooks
LIMIT_S = 30 * 60.0
LINES_TOLD = 12


class DeployFailed(BenchError):
    """The playbook did not come to its end."""

    may_pass = True


class Playbook:
    """Runs profile.yml on one node of an inventory."""

    def __init__(self, inventories: Sequence[str] = (), vault: Vault | None = None) -> None:
        """inventories: as `ansible-playbook -i` takes them; without any ansible.cfg's own."""
        self._inventories, self._vault = inventories, vault or Vault()

    def command(self, *nodes: str) -> list[str]:
        """What deploys the inventory's own profiles on these nodes, or on all; also what people are told to run."""
        where = [part for source in self._inventories for part in ("-i", source)]
        limit = ["--limit", ",".join((*nodes, "localhost"))] if nodes else []
        return ["ansible-playbook", *where, "ansible/profile.yml", *limit]

    def deploy(self, node: str, env: Mapping[str, Value] | None) -> None:
        """Raises: DeployFailed."""
        if env is None:
            self._run(node, [])
            return
        with tempfile.NamedTemporaryFile("w", prefix="bench-profile-", suffix=".json") as file:
            json.dump({"tuned_profile": temporary_profile(env)}, file)
            file.flush()
            self._run(node, ["-e", f"@{file.name}"])

    def _run(self, node: str, more: list[str]) -> None:
        """Raises: DeployFailed."""
        try:
            with vault_options(self._vault) as (options, handles):
                name, *arguments = self.command(node)
                status, said = run([program(name), *arguments, *options, *more], handles)
        except FleetError as error:
            raise DeployFailed(f"{node}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise DeployFailed(f"{node}: profile.yml was not done after {LIMIT_S / 60:.0f} minutes.") from error
        if status != 0:
            last = "\n".join(said.strip().splitlines()[-LINES_TOLD:])
            raise DeployFailed(f"{node}: profile.yml failed with status {status}:\n{last}")


def run(command: Sequence[str], handles: Sequence[int] = ()) -> tuple[int, str]:
    """A program's exit status, and all that it said.

    It has a process group of its own: a Ctrl-C is bench's to take, which then puts the node's own profile back. When
    this is interrupted the whole group ends, or a playbook's forks would go on beside the one that puts things right.
    Raises: subprocess.TimeoutExpired.
    """
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=handles,
        start_new_session=True,
    ) as process:
        _running.add(process.pid)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            _running.discard(process.pid)
        return process.returncode, out + err


def end_all() -> None:
    """End every playbook that runs, for an end at once: it would go on beside the one that puts things right."""
    for group in _running:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def temporary_profile(env: Mapping[str, Value]) -> dict[str, Any]:
    """A profile for the time of a block; the roles check it as every other."""
    provenance = {"run": "bench, measuring", "at": "now"}
    return {"format": knobs.FORMAT, "env": dict(env), "measured": {}, "provenance": provenance}
