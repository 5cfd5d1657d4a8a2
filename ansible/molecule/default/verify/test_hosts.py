"""The fresh hosts that a scenario starts on are healthy machines."""

from __future__ import annotations

from tests.hosts.fleet import Node


def test_no_unit_has_failed(nodes: list[Node]) -> None:
    assert [node.sh("systemctl --failed --no-legend") for node in nodes] == ["", ""]
