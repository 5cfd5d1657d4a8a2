"""Settings that need a restart, brought onto a node by its own playbook.

The profile travels as an extra variable, which beats the inventory's, so no file of the inventory changes: whatever
kills this leaves the inventory as it was, and the next run of profile.yml puts the node right.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gevent import subprocess

from bench import knobs
from bench.client import BenchError
from bench.space import Value

PROJECT = Path(__file__).resolve().parent.parent
PLAYBOOK = PROJECT / "ansible" / "profile.yml"
LIMIT_S = 30 * 60.0
LINES_TOLD = 12


class DeployFailed(BenchError):
    """The playbook did not come to its end."""


class Playbook:
    """Runs profile.yml on one node of an inventory."""

    def __init__(self, inventory: Path | None = None, arguments: tuple[str, ...] = ()) -> None:
        """inventory: None is ansible.cfg's own. arguments: further ones, as for the vault's password."""
        self._inventory, self._arguments = inventory, arguments

    def command(self, node: str) -> list[str]:
        """What deploys the inventory's own profile on this node; also what people are told to run."""
        where = ["-i", str(self._inventory)] if self._inventory else []
        return ["ansible-playbook", str(PLAYBOOK), *where, "--limit", f"{node},localhost", *self._arguments]

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
        try:
            done = subprocess.run(
                [*self.command(node), *more], cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT_S
            )
        except OSError as error:
            raise DeployFailed(
                f"{node}: ansible-playbook cannot be run ({error.strerror}); install it with `make fleet`."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise DeployFailed(f"{node}: profile.yml was not done after {LIMIT_S / 60:.0f} minutes.") from error
        if done.returncode != 0:
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-LINES_TOLD:])
            raise DeployFailed(f"{node}: profile.yml failed with status {done.returncode}:\n{last}")


def temporary_profile(env: Mapping[str, Value]) -> dict[str, Any]:
    """A profile for the time of a block; the roles check it as every other."""
    provenance = {"run": "bench, measuring", "at": "now"}
    return {"format": knobs.FORMAT, "env": dict(env), "measured": {}, "provenance": provenance}
