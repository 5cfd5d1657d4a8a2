"""What is deployed is compared with what was before; a profile that makes a node slower is put back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import loop
import pytest

from bench.inventory import tuned_file
from bench.inventory.tuned_profile import TunedProfile
from tests.hosts.fleet import Node

LOOKS = ("--rounds=6", "--max-tokens=8")
# On a busy machine one round may come out the other way; of these rounds some may.
MORE_LOOKS = ("--rounds=12", "--max-tokens=8")


def test_a_verdict_is_given_and_the_nodes_file_has_it(nodes: list[Node]) -> None:
    status, told = loop.bench("verify", *LOOKS, "--dry-run", statuses=(0, 3))
    for node, each in zip(nodes, told["nodes"], strict=True):
        run = json.loads(Path(each["file"]).read_text())
        assert (run["node"], run["status"], each["problem"]) == (node.name, "complete", "")
        assert run["verdict"] == each["verdict"]
        assert run["new"] == {"items": [[name, value] for name, value in each["new"].items()]}
        assert each["new"]["N_CTX"] == 1024
    assert (status == 3) == any(each["verdict"]["kind"] == "slower" for each in told["nodes"])
    assert not any(each["put_back"] for each in told["nodes"])


@dataclasses.dataclass(frozen=True)
class Planted:
    """A node with a profile that makes any machine slower: threads that wait for each other on too few cores."""

    node: Node
    before: bytes
    env: dict[str, Any]
    status: int
    told: dict[str, Any]


@pytest.fixture(scope="module")
def planted(nodes: list[Node]) -> Planted:
    node = nodes[1]
    before, good = loop.file_of(node).read_bytes(), tuned_file.read(loop.INVENTORY, node.name)
    assert good is not None
    bad = {**good.env, "N_THREADS": min(256, 16 * loop.facts(node)["board"]["cores"])}
    tuned_file.write(loop.INVENTORY, node.name, TunedProfile(env=bad, measured={}, provenance=good.provenance))
    loop.deploy(f"--limit={node.name},localhost")
    loop.require_in_force(node, bad)
    status, told = loop.bench("verify", *MORE_LOOKS, f"--limit={node.name}", "--apply", statuses=(0, 3))
    return Planted(node, before, good.env, status, told["nodes"][0])


def test_a_profile_that_makes_the_node_slower_is_found(planted: Planted) -> None:
    assert planted.told["verdict"]["kind"] == "slower", planted.told["words"]
    assert planted.status == 3


def test_the_profile_before_it_is_in_the_inventory_again_byte_for_byte(planted: Planted) -> None:
    assert planted.told["put_back"]
    assert loop.file_of(planted.node).read_bytes() == planted.before


def test_and_it_is_in_force_again(planted: Planted) -> None:
    assert planted.told["applied"]
    loop.require_in_force(planted.node, planted.env)
