"""What `bench doctor` finds, from facts alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bench.doctor import Finding, Patient, Speed, equals, findings
from bench.inventory.tuned_profile import Provenance, TunedProfile
from bench.statistics.outliers import TEST, outliers


def facts(**fields: Any) -> dict[str, Any]:
    board = {"name": "Raspberry Pi 5 Model B", "memory_mib": 8192, "firmware": "2025-01-01", "kernel": "6.12"}
    return {
        "board": {**board, **fields.pop("board", {})},
        "engine": {"version": "0.32.15", "problem": None, **fields.pop("engine", {})},
        "model": {"name": "qwen2.5:3b", "digest": "aa", **fields.pop("model", {})},
        "appliance": {"version": "0.1.0", "release": "0.1.0-1"},
        "settings": {"N_CTX": 512, "N_THREADS": 4},
        "governor": "performance",
        "throttling": {"bits": "0x0", "now": [], "since_boot": []},
        **fields,
    }


def fleet(*odd: dict[str, Any], healthy: int = 3) -> list[Patient]:
    every = [*odd, *(facts() for _ in range(healthy))]
    return [Patient(f"pi{k}", told) for k, told in enumerate(every, 1)]


def measured(rate: float, told: dict[str, Any] | None = None, under: str = "1 at once") -> Speed:
    return Speed(rate, under, told or facts())


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def test_a_healthy_fleet_has_no_findings() -> None:
    assert findings(fleet()) == []


def test_a_node_that_differs_from_the_majority_is_told() -> None:
    found = only(findings(fleet(facts(engine={"version": "0.31.0"}))))
    assert (found.kind, found.node) == ("drift", "pi1")
    assert found.text == "Ollama's version is 0.31.0, and 0.32.15 on 3 of 4 nodes"


def test_the_governor_is_compared_among_equal_boards() -> None:
    found = only(findings(fleet(facts(governor="ondemand"))))
    assert (found.kind, found.node) == ("drift", "pi1")
    assert found.text == "the governor is ondemand, and performance on 3 of 4 nodes"
    assert "site.yml" in found.remedy


def test_without_a_majority_every_node_is_told() -> None:
    found = findings(fleet(facts(model={"digest": "bb"}), healthy=1))
    assert [finding.node for finding in found] == ["pi1", "pi2"]


def test_firmware_is_compared_among_equal_boards_alone() -> None:
    other = facts(board={"name": "Raspberry Pi 4 Model B", "firmware": "2021-01-01"})
    assert findings(fleet(other)) == []
    assert only(findings(fleet(facts(board={"firmware": "2021-01-01"})))).text.startswith("the firmware is 2021-01-01")


def test_what_a_node_does_not_tell_is_no_drift() -> None:
    assert findings(fleet(facts(governor=None))) == []


def test_throttling_is_told_with_its_remedy() -> None:
    bits = {"bits": "0x50001", "now": ["undervoltage"], "since_boot": ["undervoltage", "throttled"]}
    found = findings(fleet(facts(throttling=bits)))
    assert [finding.text for finding in found] == [
        "the board reports throttled since its start",
        "the board reports undervoltage now",
    ]
    assert "27 W" in found[1].remedy


def test_a_profile_that_is_not_in_force_is_told_and_a_stale_one() -> None:
    rests_on = Provenance(run="r", at="2026-01-01T00:00:00Z", ollama="0.30.0")
    profile = TunedProfile(env={"N_CTX": 1024}, measured={}, provenance=rests_on)
    found = findings([Patient("pi1", facts(), profile)])
    assert [finding.kind for finding in found] == ["stale", "not deployed"]
    assert "N_CTX is 512 on the node and should be 1024" in found[1].text


def test_what_to_do_about_a_profile_names_the_inventory_that_was_given() -> None:
    profile = TunedProfile(
        env={"N_CTX": 1024}, measured={}, provenance=Provenance(run="r", at="2026-01-01T00:00:00Z", ollama="0.30.0")
    )
    found = findings([Patient("pi1", facts(), profile)], ["my fleet/hosts.yml"])
    assert [each.remedy for each in found] == [
        "bench tune -i 'my fleet/hosts.yml' --limit pi1",
        "ansible-playbook -i 'my fleet/hosts.yml' ansible/profile.yml --limit pi1,localhost",
    ]


def test_a_node_that_is_slower_than_its_equals_is_an_outlier_by_a_named_test() -> None:
    rates = [4.0, 5.0, 5.05, 4.98, 5.1, 5.02]
    patients = [Patient(f"pi{k}", facts(), None, measured(rate)) for k, rate in enumerate(rates, 1)]
    found = only(findings(patients))
    assert (found.kind, found.node, found.test) == ("outlier", "pi1", TEST)
    assert found.p is not None
    assert found.p < 0.01
    assert "20% slower than the median of 6 equal nodes" in found.text


EQUAL = [Patient(f"pi{k}", facts(), None, measured(5.0 + k / 100)) for k in range(5)]


@pytest.mark.parametrize(
    "speed",
    [
        measured(3.0, facts(settings={"N_CTX": 4096, "N_THREADS": 4})),
        measured(3.0, facts(board={"memory_mib": 4096})),
        measured(3.0, facts(model={"digest": "bb"})),
        measured(3.0, facts(engine={"version": "0.31.0"})),
        measured(3.0, under="2 at once"),
    ],
)
def test_what_was_measured_otherwise_is_no_equal(speed: Speed) -> None:
    assert findings([*EQUAL, Patient("pi9", facts(), None, speed)]) == []
    assert findings([*EQUAL, Patient("pi9", facts(), None, measured(3.0))]) != []


def test_a_node_that_was_tuned_since_is_compared_as_it_was_when_it_was_measured() -> None:
    tuned_since = facts(settings={"N_CTX": 512, "N_THREADS": 3})
    assert only(findings([*EQUAL, Patient("pi9", tuned_since, None, measured(3.0))])).kind == "outlier"


def test_of_fewer_nodes_than_the_test_needs_none_is_compared() -> None:
    assert equals(EQUAL[:3]) == []
    assert [len(group) for group in equals(EQUAL)] == [5]


def test_two_outliers_do_not_hide_each_other() -> None:
    values = {f"pi{k}": 5.0 + k / 50 for k in range(8)}
    found = outliers({**values, "slow": 4.0, "slower": 3.9})
    assert {outlier.node for outlier in found} == {"slow", "slower"}


def test_equal_nodes_are_rarely_called_outliers() -> None:
    rng = random.Random(7)
    fleets = ({str(k): rng.lognormvariate(1.6, 0.05) for k in range(8)} for _ in range(500))
    assert sum(bool(outliers(values)) for values in fleets) <= 25


def test_three_nodes_are_too_few_to_tell() -> None:
    assert outliers({"a": 5.0, "b": 5.0, "c": 2.0}) == []
