"""What uninstall.yml leaves: the machine as it was, and what the owner asked to keep. The tests build on each other."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.hosts import fleet
from tests.hosts.fleet import Node

SCENARIO = "uninstall"
# What no package and no role owns, and what changes by itself on a machine that runs.
PASSING = [
    "/dev",
    "/proc",
    "/sys",
    "/run",
    "/tmp",
    "/var/tmp",
    "/var/log",
    "/var/cache",
    "/var/lib/apt",
    "/root/.ansible",
]
# Kept by the system's own tools when a package or user comes and goes: backups, indices, a random seed, caches.
BOOKS = [
    "/etc/*-",
    "/etc/ld.so.cache",
    "/etc/.pwd.lock",
    "/var/lib/dpkg/*",
    "/var/lib/systemd/*",
    "*/__pycache__*",
    "/home/pi/.ansible*",
]
Shot = dict[str, set[str]]


def shot(node: Node) -> Shot:
    """Packages by name (a new one may renew an old one), users, units and files; of /etc also what is in them."""
    skip = " -o ".join(f"-path {path}" for path in PASSING)
    ignored = " ".join(f"! -path '{path}'" for path in BOOKS)
    find = f"find / -xdev \\( {skip} \\) -prune -o {ignored}"
    return {
        "packages": lines(node, "dpkg-query -W -f '${Package} ${db:Status-Status}\\n'"),
        "users": lines(node, "cut -d: -f1,3- /etc/passwd; cut -d: -f1,2 /etc/shadow"),
        "groups": lines(node, "sort /etc/group /etc/gshadow"),
        "units": lines(node, "systemctl list-unit-files --no-legend --no-pager | grep -v transient"),
        "running": lines(
            node, "systemctl list-units --type=service --state=running --no-legend --plain | cut -d' ' -f1"
        ),
        "files": lines(node, f"{find} -printf '%p %y %m %U %G %l\\n'"),
        "settings": lines(node, f"{find} -path '/etc/*' -type f -exec sha256sum {{}} +"),
    }


def lines(node: Node, command: str) -> set[str]:
    return set(node.sh(command).splitlines())


def differences(before: Shot, after: Shot) -> dict[str, list[str]]:
    """What came (+) and what went (-), by kind; only kinds with a difference."""
    told = {
        kind: sorted(
            [f"- {line}" for line in before[kind] - after[kind]] + [f"+ {line}" for line in after[kind] - before[kind]]
        )
        for kind in before
    }
    return {kind: changes for kind, changes in told.items() if changes}


@pytest.fixture(scope="module")
def before(nodes: list[Node]) -> dict[str, Shot]:
    """The machines as they came."""
    return {node.name: shot(node) for node in nodes}


@pytest.fixture(scope="module")
def provisioned(before: dict[str, Shot], nodes: list[Node]) -> list[Node]:
    fleet.play(SCENARIO, "site.yml")
    return nodes


def test_without_a_yes_nothing_changes(provisioned: list[Node]) -> None:
    command = fleet.playbook(SCENARIO, "uninstall.yml")
    done = subprocess.run(
        command, cwd=fleet.PROJECT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode != 0
    assert "Nothing was changed" in done.stdout
    assert "-e confirm=yes" in done.stdout
    assert [node.get("/ready")[0] for node in provisioned] == [200, 200]


def test_check_mode_removes_nothing(provisioned: list[Node]) -> None:
    fleet.play(SCENARIO, "uninstall.yml", "-e", "confirm=yes", "--check")
    assert [node.get("/ready")[0] for node in provisioned] == [200, 200]


def test_what_is_to_be_kept_is_kept(provisioned: list[Node]) -> None:
    """A node that is made anew then takes the same key, and needs no model from anywhere."""
    node = provisioned[0]
    key = node.sh("pi-llm keys create --owner keeper 2>/dev/null")
    blobs = node.sh("ls -l --time-style=full-iso /var/lib/ollama/models/blobs")
    fleet.play(
        SCENARIO,
        "uninstall.yml",
        "-e",
        "confirm=yes",
        "-e",
        "keep_models=true",
        "-e",
        "keep_keys=true",
        "--limit",
        node.name,
    )
    assert (
        node.sh("ls /opt /usr/local/bin; systemctl list-unit-files 'pi-llm*' 'ollama*' --no-legend || true")
        == "/opt:\n\n/usr/local/bin:"
    )
    assert node.sh("find /var/lib/ollama /var/lib/pi-llm -nouser -o -nogroup") == ""
    fleet.play(SCENARIO, "site.yml", "--limit", node.name)
    assert node.sh("ls -l --time-style=full-iso /var/lib/ollama/models/blobs") == blobs
    assert generated_with(node, key)


def generated_with(node: Node, key: str) -> bool:
    """Whether a generation succeeds with this key, which goes through stdin."""
    body = json.dumps({"prompt": "Hello", "max_tokens": 4, "stream": False})
    answer = node.sh(
        "curl -sS --fail -H 'Content-Type: application/json' -d '" + body + "' -K - http://127.0.0.1:8000/generate"
        f" <<< 'header = \"X-API-Key: {key}\"'"
    )
    return int(json.loads(answer)["completion_tokens"]) > 0


def test_an_install_that_was_cut_off_is_taken_away_whole(provisioned: list[Node], before: dict[str, Shot]) -> None:
    """And so is one that serves, of which the second node is an example."""
    provisioned[0].sh(
        "rm -r /opt/pi-llm/current /etc/pi-llm/appliance.env && systemctl stop ollama && rm /usr/local/bin/pi-llm"
    )
    fleet.play(SCENARIO, "uninstall.yml", "-e", "confirm=yes")
    after = {node.name: shot(node) for node in provisioned}
    assert {name: differences(before[name], after[name]) for name in before} == {name: {} for name in before}


def test_a_second_time_there_is_nothing_to_do(provisioned: list[Node]) -> None:
    said = fleet.play(SCENARIO, "uninstall.yml", "-e", "confirm=yes")
    assert said.count("changed=0") == len(provisioned) + 1  # and localhost
