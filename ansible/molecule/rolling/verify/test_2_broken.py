"""What does not serve is put back, and the roll stops there: the nodes after it are not touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import rolls

from tests.hosts.fleet import Node
from tests.hosts.load import Load
from tests.hosts.machine import PROJECT
from tests.hosts.network import address_of


@dataclass(frozen=True)
class Stopped:
    """A roll that did not go through, with what nodes ran before and after it."""

    before: list[rolls.Deployment]
    ran: rolls.Ran
    after: list[rolls.Deployment]
    load: Load


def stopped(nodes: list[Node], playbook: str, *arguments: str, checkout: Path = PROJECT) -> Stopped:
    before = [rolls.deployment(node) for node in nodes]
    with rolls.load().running() as load:
        ran = rolls.run(playbook, *arguments, checkout=checkout)
    return Stopped(before, ran, [rolls.deployment(node) for node in nodes], load)


def without_processes(deployment: rolls.Deployment) -> tuple[str, str, str]:
    return deployment.appliance, deployment.ollama, deployment.files


@pytest.fixture(scope="module")
def on_second_host(nodes: list[Node], releases: rolls.Releases) -> Stopped:
    """The first host gets a new release, and so does the second, but with an Ollama that ends at once."""
    rolls.ask_for("rolling2", **rolls.ollama(releases.broken_ollama))
    seen = stopped(nodes, "upgrade.yml", checkout=releases.third)
    rolls.ask_for("rolling2")
    return seen


def test_the_roll_fails_with_the_reason_and_the_end_of_the_journal(on_second_host: Stopped) -> None:
    assert on_second_host.ran.status == 2
    said = " ".join(on_second_host.ran.output.split())
    assert "rolling2: 'Stop with what Ollama said' failed: rolling2: Ollama did not answer on 127.0.0.1:11434" in said
    assert "What served before was put back, and it serves." in said
    assert "Error: llama-server: this release is broken on purpose" in said


def test_the_first_host_is_on_the_new_release(
    on_second_host: Stopped, nodes: list[Node], releases: rolls.Releases
) -> None:
    assert on_second_host.after[0].appliance == rolls.release_of(releases.third)
    assert rolls.running(nodes[0])["appliance"] == rolls.release_of(releases.third)


def test_the_second_host_runs_what_it_ran_before(
    on_second_host: Stopped, nodes: list[Node], releases: rolls.Releases
) -> None:
    assert without_processes(on_second_host.after[1]) == without_processes(on_second_host.before[1])
    running = rolls.running(nodes[1])
    assert (running["ollama"], running["appliance"]) == ("0.34.4-test2", rolls.release_of(releases.second))
    rolls.require_served(nodes[1])


def test_the_third_host_is_not_touched(on_second_host: Stopped) -> None:
    assert on_second_host.after[2] == on_second_host.before[2]


def test_clients_notice_nothing(on_second_host: Stopped) -> None:
    assert on_second_host.load.failures == []


@pytest.fixture(scope="module")
def at_the_canary(on_second_host: Stopped, nodes: list[Node], releases: rolls.Releases) -> Stopped:
    """A release whose command line works, and whose service ends at its start."""
    return stopped(nodes, "upgrade.yml", checkout=releases.failing)


def test_a_release_that_ends_at_its_start_stops_at_the_first_host(at_the_canary: Stopped) -> None:
    assert at_the_canary.ran.status == 2
    said = " ".join(at_the_canary.ran.output.split())
    assert "rolling1: 'Restart the appliance' failed: Unable to restart service pi-llm.service" in said
    assert "What served before was put back, and it serves." in said
    assert "this release is broken on purpose" in said
    assert without_processes(at_the_canary.after[0]) == without_processes(at_the_canary.before[0])
    assert at_the_canary.after[1:] == at_the_canary.before[1:]
    assert at_the_canary.load.failures == []


@pytest.fixture(scope="module")
def with_wrong_settings(at_the_canary: Stopped, nodes: list[Node]) -> Stopped:
    """Settings that are allowed, and cannot serve: the address is another machine's."""
    rolls.ask_for("rolling3", appliance_host=address_of(200))
    seen = stopped(nodes, "profile.yml", "--limit=rolling3")
    rolls.ask_for("rolling3")
    return seen


def test_settings_that_do_not_serve_are_put_back(with_wrong_settings: Stopped, nodes: list[Node]) -> None:
    assert with_wrong_settings.ran.status == 2
    assert "What served before was put back, and it serves." in " ".join(with_wrong_settings.ran.output.split())
    assert without_processes(with_wrong_settings.after[2]) == without_processes(with_wrong_settings.before[2])
    rolls.require_served(nodes[2])
    assert with_wrong_settings.load.failures == []


@pytest.fixture(scope="module")
def mended(with_wrong_settings: Stopped, releases: rolls.Releases) -> rolls.Ran:
    return rolls.run("upgrade.yml", checkout=releases.third)


def test_once_the_inventory_is_mended_the_next_run_completes_the_roll(
    mended: rolls.Ran, nodes: list[Node], releases: rolls.Releases
) -> None:
    assert mended.status == 0, mended.output
    assert mended.changed["rolling1"] == 0
    assert {running["appliance"] for running in map(rolls.running, nodes)} == {rolls.release_of(releases.third)}
