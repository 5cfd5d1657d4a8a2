"""A roll that was cut short at any task is finished by the next run, also where the inventory has changed since."""

from __future__ import annotations

import json

import pytest
import rolls

from tests.hosts import podman
from tests.hosts.fleet import Node

LIMIT = "--limit=rolling3"
TASKS = (
    "Write unit and settings",
    "Find what the running services do not have yet",
    "Restart Ollama",
    "Restart the appliance",
    "Wait until it is ready, and let it answer once",
)


def settings(value: int) -> str:
    """The argument that changes a setting of both services."""
    return "--extra-vars=" + json.dumps({"ollama_cache_ram_mib": 200 + value, "appliance_max_queue_size": value})


@pytest.fixture(scope="module", autouse=True)
def settled() -> rolls.Ran:
    """A deployment of this file's own to begin with."""
    ran = rolls.run("profile.yml", LIMIT, settings(20))
    assert ran.status == 0, ran.output
    return ran


def require_running(node: Node, value: int) -> None:
    running = rolls.running(node)
    assert (running["cache_ram_mib"], running["max_queue_size"]) == (str(200 + value), str(value))
    rolls.require_served(node)


def test_a_run_that_is_killed_at_one_task_after_the_other_is_finished_by_the_next(nodes: list[Node]) -> None:
    for task in TASKS:
        rolls.killed_at(task, "profile.yml", LIMIT, settings(21))
    ran = rolls.run("profile.yml", LIMIT, settings(21))
    assert ran.status == 0, ran.output
    require_running(nodes[2], 21)


def test_services_that_a_killed_run_restarted_follow_an_inventory_that_went_back(nodes: list[Node]) -> None:
    rolls.killed_at("Wait until it is ready, and let it answer once", "profile.yml", LIMIT, settings(22))
    ran = rolls.run("profile.yml", LIMIT, settings(21))
    assert ran.status == 0, ran.output
    require_running(nodes[2], 21)


def test_a_killed_rollback_goes_on_and_not_forward_again(nodes: list[Node]) -> None:
    rolls.killed_at("Start what was put back", "rollback.yml", LIMIT)
    ran = rolls.run("rollback.yml", LIMIT)
    assert ran.status == 0, ran.output
    require_running(nodes[2], 20)


def test_a_node_that_loses_power_in_its_turn_is_made_whole_by_that_run_or_the_next(nodes: list[Node]) -> None:
    rolls.run("profile.yml", LIMIT, settings(23), at={"Restart Ollama": lambda: podman.cut("rolling3")})
    ran = rolls.run("profile.yml", LIMIT, settings(23))
    assert ran.status == 0, ran.output
    require_running(nodes[2], 23)
