"""A fleet under load goes back to the deployment before, once, and no client notices."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import rolls

from tests.hosts.fleet import Node
from tests.hosts.load import Load


@dataclass(frozen=True)
class Rollback:
    """Going back, and going back once more."""

    ran: rolls.Ran
    again: rolls.Ran
    load: Load


@pytest.fixture(scope="module")
def rollback() -> Rollback:
    with rolls.load().running() as load:
        ran = rolls.run("rollback.yml")
        return Rollback(ran, rolls.run("rollback.yml"), load)


def test_every_node_runs_the_release_before(rollback: Rollback, nodes: list[Node], releases: rolls.Releases) -> None:
    assert rollback.ran.status == 0, rollback.ran.output
    assert {running["appliance"] for running in map(rolls.running, nodes)} == {rolls.release_of(releases.second)}


def test_no_request_fails(rollback: Rollback) -> None:
    assert rollback.load.failures == []
    assert {node for answer in rollback.load.answers for node in answer.refused_by} != set()


def test_going_back_once_more_is_refused_and_changes_nothing(rollback: Rollback) -> None:
    assert rollback.again.status == 2
    assert "No node has an earlier deployment" in " ".join(rollback.again.output.split())
    assert set(rollback.again.changed.values()) == {0}
