"""A fleet under load goes to new releases node by node, and no client notices."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import rolls

from tests.hosts.fleet import Node
from tests.hosts.load import Load


@dataclass(frozen=True)
class Upgrade:
    """The roll of this file, and what its clients saw."""

    before: list[rolls.Deployment]
    told: rolls.Ran
    after_telling: list[rolls.Deployment]
    ran: rolls.Ran
    load: Load


@pytest.fixture(scope="module")
def upgrade(nodes: list[Node], releases: rolls.Releases) -> Upgrade:
    before = [rolls.deployment(node) for node in nodes]
    rolls.ask_for("nodes", **rolls.ollama(releases.ollama))
    told = rolls.run("upgrade.yml", "--check", "--limit=rolling1", checkout=releases.second)
    after_telling = [rolls.deployment(node) for node in nodes]
    with rolls.load().running() as load:
        ran = rolls.run("upgrade.yml", checkout=releases.second)
    return Upgrade(before, told, after_telling, ran, load)


def test_check_mode_tells_of_drain_and_restarts_and_does_nothing(upgrade: Upgrade) -> None:
    assert upgrade.told.status == 0, upgrade.told.output
    assert upgrade.after_telling == upgrade.before
    for task in ("Tell that it would be drained", "Restart Ollama", "Restart the appliance"):
        assert upgrade.told.changed_at(task) == ["rolling1"], task


def test_it_ends_well(upgrade: Upgrade) -> None:
    assert upgrade.ran.status == 0, upgrade.ran.output


def test_no_request_fails(upgrade: Upgrade) -> None:
    assert upgrade.load.failures == []


def test_every_node_answers_streams_and_whole_answers_and_refuses_while_it_is_out(upgrade: Upgrade) -> None:
    answers = upgrade.load.answers
    everybody = {"rolling1", "rolling2", "rolling3"}
    assert {(answer.node, answer.is_streamed) for answer in answers} == {(n, s) for n in everybody for s in (0, 1)}
    assert {node for answer in answers for node in answer.refused_by} == everybody


def test_every_node_runs_the_new_releases(upgrade: Upgrade, nodes: list[Node], releases: rolls.Releases) -> None:
    wanted = {("0.34.4-test2", rolls.release_of(releases.second))}
    assert {(running["ollama"], running["appliance"]) for running in map(rolls.running, nodes)} == wanted


def test_two_nodes_were_never_out_at_once(upgrade: Upgrade, nodes: list[Node]) -> None:
    outages = sorted(outage for node in nodes for outage in rolls.outages(node))
    assert len(outages) == len(nodes)
    assert all(ended < began for (_, ended), (began, _) in pairwise(outages))
