"""A profile goes stale with the engine, the model and the board it was measured with; verify.yml and bench say so."""

from __future__ import annotations

import re
from typing import Any

import loop
import pytest

from tests.hosts import fleet
from tests.hosts.fleet import Node

VERSION, DIGEST = "0.1.0", "0" * 64


def measured_with(node: Node, field: str, value: str) -> None:
    """The node's profile, as if it had been measured when this was so."""
    text, count = re.subn(rf'(    {field}: )".*"', rf'\1"{value}"', loop.file_of(node).read_text())
    assert count == 1
    loop.file_of(node).write_text(text)


def verified(nodes: list[Node]) -> tuple[list[str], str]:
    """What the table of verify.yml calls the nodes' state, and all that it says, in one line; it must succeed."""
    said = fleet.play(loop.SCENARIO, "verify.yml")
    rows = [re.search(rf"^ *{node.name} .* GiB +(.+)$", said, re.MULTILINE) for node in nodes]
    return [row[1] for row in rows if row], " ".join(said.split()).replace("''", "'")


def shown() -> dict[str, Any]:
    """Why a profile is stale, by node."""
    return {row["node"]: row["stale"] for row in loop.bench("show")[1]["nodes"]}


def test_nothing_is_stale_where_nothing_has_changed(nodes: list[Node]) -> None:
    states, said = verified(nodes)
    assert states == ["as it should be"] * len(nodes)
    assert "stale" not in said
    assert shown() == {node.name: [] for node in nodes}


@pytest.fixture(scope="module")
def changed(nodes: list[Node]) -> dict[str, str]:
    """What is to be said of each node."""
    measured_with(nodes[0], "ollama", VERSION)
    measured_with(nodes[1], "model_digest", DIGEST)
    now = [loop.facts(node) for node in nodes]
    return {
        nodes[0].name: f"Ollama's version was {VERSION} when it was measured, and is {now[0]['engine']['version']} now",
        nodes[1].name: f"the model's digest was {DIGEST} when it was measured, and is {now[1]['model']['digest']} now",
    }


def test_verify_says_which_profile_is_stale_and_why(nodes: list[Node], changed: dict[str, str]) -> None:
    states, said = verified(nodes)
    assert states == ["profile stale"] * len(nodes)
    for node, reason in changed.items():
        assert f"{node}: its tuned profile is stale: {reason} (bench tune" in said


def test_bench_show_says_so_too(changed: dict[str, str]) -> None:
    assert shown() == {node: [reason] for node, reason in changed.items()}
