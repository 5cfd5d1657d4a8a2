"""Runs `bench` as a person does, against real nodes and an inventory of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import DEADLINE_S, PROJECT, Node

from bench.inventory import tuned_file
from bench.inventory.tuned_profile import Provenance, TunedProfile

PACKAGES = os.pathsep.join([str(PROJECT), *(path for path in sys.path if path.endswith("site-packages"))])


class Bench:
    """One inventory with the nodes named, and the results of all that is done with them."""

    def __init__(self, folder: Path, **nodes: Node | str) -> None:
        """nodes: running ones, or URLs at which nothing answers."""
        self.folder, self.inventory, self.results = folder, folder / "inventory", folder / "results"
        self.inventory.mkdir()
        self.path = os.environ["PATH"]
        self.python = sys.executable
        hosts = {}
        for name, node in nodes.items():
            url = node if isinstance(node, str) else f"http://127.0.0.1:{node.port}"
            key = "pk_" + "0" * 12 + "_" + "x" * 40 if isinstance(node, str) else node.key
            hosts[name] = {"bench_url": url, "vault_keys": [{"owner": "bench", "key": key}]}
        (self.inventory / "hosts.yml").write_text(json.dumps({"nodes": {"hosts": hosts}}))

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        where = ["--results", str(self.results)]
        if command != "compare":
            where += ["-i", str(self.inventory / "hosts.yml")]
        return subprocess.Popen(
            [self.python, "-m", "bench", command, *where, *arguments],
            env={"PATH": self.path, "PYTHONPATH": PACKAGES, "HOME": str(self.folder)},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command: str, *arguments: str) -> tuple[int, str, str]:
        process = self.start(command, *arguments)
        out, err = process.communicate(timeout=DEADLINE_S * 4)
        return process.returncode, out, err

    def told(self, command: str, *arguments: str, status: int = 0) -> Any:
        """What it prints as JSON."""
        found, out, err = self(command, "--json", *arguments)
        assert found == status, (found, out, err)
        return json.loads(out)

    def profile(self, node: str = "pi1") -> TunedProfile | None:
        return tuned_file.read(self.inventory, node)

    def give(self, node: str = "pi1", **env: int | str) -> Path:
        """Write this profile, as a tune would."""
        given = TunedProfile(env=env, measured={}, provenance=Provenance(run="a run", at="2026-01-01T00:00:00Z"))
        return tuned_file.write(self.inventory, node, given)
