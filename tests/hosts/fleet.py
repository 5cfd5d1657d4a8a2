"""A scenario's fleet: its hosts, Ollama's release to download, and an inventory.

The inventory differs from the project's in addresses and test values alone. It and the download server's process id lie
in one folder, .test-hosts/molecule/<scenario>/.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hosts import image, podman, release
from tests.hosts.machine import PROJECT, STATE, Refused, run

SCENARIOS = PROJECT / "ansible/molecule"
# What does not depend on a scenario is fetched and built once for all of them.
RELEASES, CACHE = STATE / "releases", STATE / "cache"
HOSTS = (sys.executable, "-m", "tests.hosts")
KEYS = {"name", "release", "octet", "memory", "tasks", "disks", "groups"}


def folder_of(scenario: str) -> Path:
    """Where a scenario's inventory and download server are written down."""
    return STATE / "molecule" / scenario


def host_of(platform: Mapping[str, Any]) -> podman.Host:
    """A host as molecule.yml describes it under `platforms`."""
    if unknown := sorted(set(platform) - KEYS):
        raise Refused(f"platforms has {', '.join(unknown)}, but a test host takes {', '.join(sorted(KEYS))}")
    return podman.Host(
        name=platform["name"],
        release=platform["release"],
        octet=platform["octet"],
        memory=platform.get("memory"),
        tasks=platform.get("tasks", 4096),
        disks=tuple(podman.Disk.parse(disk) for disk in platform.get("disks", [])),
    )


def hosts_file(hosts: Sequence[podman.Host]) -> dict[str, Any]:
    """The inventory's hosts.yml."""
    reach = {
        "ansible_user": "pi",
        "ansible_ssh_private_key_file": str(image.KEY),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={podman.KNOWN_HOSTS} -o StrictHostKeyChecking=yes",
    }
    return {"nodes": {"hosts": {host.name: {"ansible_host": host.address} for host in hosts}, "vars": reach}}


def test_values(built: release.Release, machine: str, downloads_url: str) -> dict[str, Any]:
    """What differs from a real fleet: where Ollama's release comes from, and which model it has."""
    return {
        "fleet_cache_dir": str(CACHE),
        "ollama_version": built.version,
        "ollama_checksums": {machine: built.sha256},
        "ollama_url": f"{downloads_url}/v{{version}}/ollama-linux-{{arch}}.{{format}}",
        "model_name": "smollm2:135m",
        "appliance_n_threads": 1,  # hosts share the cores; two threads that wait for each other are slow
    }


def write_inventory(folder: Path, scenario: str, hosts: Sequence[podman.Host], values: Mapping[str, Any]) -> None:
    """The project's own variable files by links, with the test values beside those that people edit."""
    project, here = PROJECT / "inventory/group_vars", folder / "inventory"
    nodes = here / "group_vars/nodes"
    nodes.mkdir(parents=True)
    (here / "host_vars").mkdir()
    (here / "hosts.yml").write_text(json.dumps(hosts_file(hosts), indent=2))
    (here / "group_vars/all").symlink_to(project / "all")
    for file in (project / "nodes").glob("*.yml"):
        (nodes / file.name).symlink_to(file)
    (nodes / "test_values.yml").write_text(json.dumps(values, indent=2))
    own = SCENARIOS / scenario / "vars.yml"
    if own.exists():
        (nodes / "test_values_scenario.yml").symlink_to(own)


def create(scenario: str, platforms: Sequence[Mapping[str, Any]]) -> None:
    """Fresh hosts, the download server, and the inventory for a scenario; whatever it had before is gone."""
    hosts = [host_of(platform) for platform in platforms]
    destroy(scenario, platforms)
    folder = folder_of(scenario)
    folder.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(podman.up, hosts))
    built = release.build(RELEASES)
    serve = [*HOSTS, "serve", str(RELEASES), "--detach", str(folder / "server.pid")]
    write_inventory(folder, scenario, hosts, test_values(built, run(["uname", "-m"]).strip(), run(serve).strip()))


def destroy(scenario: str, platforms: Sequence[Mapping[str, Any]]) -> None:
    """Nothing is left of a scenario but what all of them share."""
    run([*HOSTS, "unserve", str(folder_of(scenario) / "server.pid")])
    podman.down([platform["name"] for platform in platforms])
    shutil.rmtree(folder_of(scenario), ignore_errors=True)


@dataclass(frozen=True)
class Node:
    """One host of a scenario, for what verifies it."""

    name: str
    address: str

    def sh(self, command: str) -> str:
        """What a shell command prints there; it runs as root, and must succeed."""
        words = podman.ssh_command(self.name, ["sudo", "bash", "-euo", "pipefail", "-s"])
        done = subprocess.run(words, input=command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def get(self, path: str, port: int = 8000, timeout_s: float = 30.0) -> tuple[int, Any]:
        """The status and the JSON that the appliance answers to a GET, over the bridge."""
        connection = http.client.HTTPConnection(self.address, port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.load(answer)


def playbook(scenario: str, name: str, *arguments: str) -> list[str]:
    """The command that runs one of the project's playbooks on a scenario's hosts; start it in the project's root."""
    inventory = folder_of(scenario) / "inventory"
    return [
        f"{Path(sys.executable).parent}/ansible-playbook",
        f"--inventory={inventory}",
        f"ansible/{name}",
        *arguments,
    ]


def play(scenario: str, name: str, *arguments: str) -> str:
    """Run one of the project's playbooks on a scenario's hosts, and return what it says; it must succeed."""
    command = playbook(scenario, name, *arguments)
    environment = os.environ | {"ANSIBLE_FORCE_COLOR": "false"}  # molecule wants colours, and readers do not
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def nodes_of(scenario: str) -> list[Node]:
    """The hosts of a scenario that `create` made."""
    hosts = json.loads((folder_of(scenario) / "inventory/hosts.yml").read_text())["nodes"]["hosts"]
    return [Node(name, variables["ansible_host"]) for name, variables in hosts.items()]
