"""Both nodes are tuned at the same time, their profiles are written and deployed, and their engines have them."""

from __future__ import annotations

from typing import Any

import loop
import pytest

from tests.hosts.fleet import Node

MINE = b"# What people write stays as it is.\nappliance_max_queue_size:    7\r\n"
# A context that no node has and a limit that demands it: whatever the speed is, the profile differs from the default.
# The one is much slower than the other on any machine, so the race is soon sure, long before the budget's end.
RACE = ("--ctx=1024", "--min-ctx=1024", "--threads=1,8", "--batch=128", "--max-tokens=8", "--budget=3m", "--force")


@pytest.fixture(scope="module")
def told(nodes: list[Node]) -> list[dict[str, Any]]:
    loop.file_of(nodes[0]).parent.mkdir()
    loop.file_of(nodes[0], "mine.yml").write_bytes(MINE)
    return list(loop.bench("tune", *RACE)[1]["nodes"])


def test_each_node_gets_a_profile_of_its_own(nodes: list[Node], told: list[dict[str, Any]]) -> None:
    assert [(each["node"], each["written"]) for each in told] == [(node.name, "written") for node in nodes]
    for node, each in zip(nodes, told, strict=True):
        found = loop.profile(node)
        assert found["env"]["N_CTX"] == 1024
        assert found["provenance"]["run"] == each["run"]
        assert found["provenance"]["model_digest"] == loop.facts(node)["model"]["digest"]


def test_what_people_wrote_beside_it_is_untouched(nodes: list[Node], told: list[dict[str, Any]]) -> None:
    assert loop.file_of(nodes[0], "mine.yml").read_bytes() == MINE


def test_the_profiles_are_deployed_and_a_second_time_nothing_changes(
    nodes: list[Node], told: list[dict[str, Any]]
) -> None:
    assert all(loop.facts(node)["settings"]["N_CTX"] == 512 for node in nodes)
    assert all(changes > 0 for changes in loop.deploy().values())
    assert loop.deploy() == {node.name: 0 for node in nodes}
    for node in nodes:
        loop.require_in_force(node, loop.profile(node)["env"])
    assert loop.facts(nodes[0])["settings"]["MAX_QUEUE_SIZE"] == 7
