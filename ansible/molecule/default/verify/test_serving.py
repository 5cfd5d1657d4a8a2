"""After one run of the playbook a fresh machine serves, and as safely as the docs say."""

from __future__ import annotations

import json
import re

from tests.hosts import fleet
from tests.hosts.fleet import Node


def test_every_node_is_ready(nodes: list[Node]) -> None:
    assert [node.get("/ready")[0] for node in nodes] == [200] * len(nodes)


def test_every_node_generates(nodes: list[Node]) -> None:
    answers = [json.loads(node.sh("pi-llm probe --json")) for node in nodes]
    assert [answer["completion_tokens"] > 0 for answer in answers] == [True] * len(nodes)


def test_verify_finds_nothing_wrong(nodes: list[Node]) -> None:
    said = fleet.play("default", "verify.yml")
    right = re.findall(r"(\S+) +(?:\S+ +){9}as it should be", said)  # lines of the table, in colour or not
    assert right == [node.name for node in nodes]


def test_no_unit_has_failed(nodes: list[Node]) -> None:
    assert [node.sh("systemctl --failed --no-legend") for node in nodes] == [""] * len(nodes)


def test_the_engine_listens_on_loopback_only(nodes: list[Node]) -> None:
    for node in nodes:
        listening = {line.split()[3] for line in node.sh("ss -Hltn").splitlines()}
        assert {address for address in listening if address.endswith(":11434")} == {"127.0.0.1:11434"}


def test_nobody_but_root_reads_the_pepper(nodes: list[Node]) -> None:
    assert [node.sh("stat -c '%a %U' /etc/pi-llm/pepper") for node in nodes] == ["600 root"] * len(nodes)


def test_services_start_with_the_machine(nodes: list[Node]) -> None:
    for node in nodes:
        assert node.sh("systemctl is-enabled ollama pi-llm").split() == ["enabled", "enabled"]
