"""Going back after an upgrade that stopped half way: nodes that it did not come to are not taken one step too far."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import roles

sys.path.insert(0, str(roles.ROOT / "ansible" / "filter_plugins"))
from left_behind import left_behind


def links(ollama: str, appliance: str) -> dict[str, str]:
    return {"/opt/ollama/current": f"releases/{ollama}", "/opt/pi-llm/current": f"releases/{appliance}"}


def node(now: dict[str, str], before: dict[str, str] | None) -> dict[str, Any]:
    """What a node says of itself to the rollback."""
    refers_to = {"proven": now, "previous": before or {}}
    return {"rollout__sorted": {"has_previous": before is not None, "refers_to": refers_to}}


OLDEST, OLD, NEW = (
    links("0.34.2-aaaaaaaa", "1-a"),
    links("0.34.3-bbbbbbbb", "1-b"),
    links("0.34.4-cccccccc", "1-c"),
)
OLD_ON_X86 = links("0.34.3-12345678", "1-b")
OLDEST_ON_X86 = links("0.34.2-87654321", "1-a")
DONE, WAITING = node(NEW, OLD), node(OLD, OLDEST)


@pytest.mark.parametrize(
    ("fleet", "stay"),
    [
        ({"pi1": DONE, "pi2": DONE}, []),
        ({"pi1": DONE, "pi2": WAITING, "pi3": WAITING}, ["pi2", "pi3"]),
        ({"pi1": DONE, "pi2": node(OLD_ON_X86, OLDEST_ON_X86)}, ["pi2"]),
        ({"pi1": DONE, "pi2": node(OLD, None)}, []),
        ({"pi1": WAITING}, []),
        ({"pi1": node(OLD, OLD), "pi2": node(OLD, OLD)}, []),
        ({"pi1": node(links("0.34.3-bbbbbbbb", "1-c"), OLD), "pi2": WAITING}, ["pi2"]),
    ],
    ids=[
        "all were upgraded",
        "it stopped after the first",
        "on another architecture",
        "one has nothing to go back to, and stays",
        "one alone, by --limit",
        "settings alone were changed",
        "the appliance alone was upgraded",
    ],
)
def test_who_serves_with_what_others_go_back_to_was_left_behind(fleet: dict[str, Any], stay: list[str]) -> None:
    assert left_behind(list(fleet), fleet) == stay


def test_the_refusal_names_them_and_the_limit_that_takes_the_others_back() -> None:
    nodes = {"pi1": DONE, "pi2": WAITING, "pi3": node(OLD, None)}
    told = roles.evaluate(
        "rollout",
        "rollout__too_far",
        ansible_play_hosts=list(nodes),
        hostvars={name: {**found, "inventory_hostname": name} for name, found in nodes.items()},
    )
    assert told.startswith("pi2 would go back one step too far: the last upgrade stopped before")
    assert told.endswith("those that it changed: --limit pi1. Nothing was changed.")
