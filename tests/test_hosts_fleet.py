"""A scenario's inventory is the project's own, with test values beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hosts import fleet
from tests.hosts.machine import PROJECT, Refused
from tests.hosts.release import Release

pytestmark = pytest.mark.usefixtures("hosts_network")
SCENARIOS = sorted((PROJECT / "ansible/molecule").glob("*/molecule.yml"))
PLATFORM = {"name": "pi1", "release": "trixie", "octet": 11, "disks": ["/opt/ollama=64"]}
VALUES = fleet.test_values(Release(Path("x"), "ab" * 32, "1.2.3"), "x86_64", "http://10.99.0.1:8080")


def platforms() -> list[dict[str, Any]]:
    return [platform for file in SCENARIOS for platform in yaml.safe_load(file.read_text())["platforms"]]


def test_the_projects_variables_are_linked_not_copied(tmp_path: Path) -> None:
    fleet.write_inventory(tmp_path, "default", [fleet.host_of(PLATFORM)], VALUES)
    nodes = tmp_path / "inventory/group_vars/nodes"
    project = PROJECT / "inventory/group_vars"
    assert (tmp_path / "inventory/group_vars/all").resolve() == project / "all"
    assert {file.name for file in nodes.iterdir()} >= {file.name for file in (project / "nodes").glob("*.yml")}


def test_test_values_are_what_people_set(tmp_path: Path) -> None:
    fleet.write_inventory(tmp_path, "default", [fleet.host_of(PLATFORM)], VALUES)
    values = json.loads((tmp_path / "inventory/group_vars/nodes/test_values.yml").read_text())
    assert values["ollama_url"] == "http://10.99.0.1:8080/v{version}/ollama-linux-{arch}.{format}"
    assert values["ollama_checksums"] == {"x86_64": "ab" * 32}


def test_a_host_is_reached_by_its_own_key_only() -> None:
    nodes = fleet.hosts_file([fleet.host_of(PLATFORM)])["nodes"]
    assert nodes["hosts"] == {"pi1": {"ansible_host": "10.99.0.11"}}
    assert "StrictHostKeyChecking=yes" in nodes["vars"]["ansible_ssh_common_args"]


def test_a_platform_with_a_typo_is_refused() -> None:
    with pytest.raises(Refused, match="platforms has memroy"):
        fleet.host_of(PLATFORM | {"memroy": "1g"})


def test_scenarios_share_no_name_and_no_address() -> None:
    hosts = [fleet.host_of(platform) for platform in platforms()]
    assert len({host.name for host in hosts}) == len({host.octet for host in hosts}) == len(hosts) > 0
