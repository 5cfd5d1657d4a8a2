"""The role rollout decides what restarts, how a failed node is put back, and with which words."""

from __future__ import annotations

from typing import Any

import pytest
import roles
import yaml

COMPARED = {"changed_parts": [], "has_proven": True, "has_previous": True}
CHANGED, SAME = {"changed": True}, {"changed": False}


def found(expression: str, **given: Any) -> Any:
    """The value of one of the role's variables on a node with these results of earlier tasks."""
    results = {
        "ansible_check_mode": False,
        "ansible_run_tags": ["all"],
        "rollout__compared": COMPARED,
        "rollout__sorted": COMPARED,
        "rollout__restored": COMPARED,
        "ollama__configured": SAME,
        "appliance__configured": SAME,
    }
    return roles.evaluate("rollout", expression, **{**results, **given})


def compared(*parts: str) -> dict[str, Any]:
    return {**COMPARED, "changed_parts": list(parts)}


@pytest.mark.parametrize(
    ("parts", "ollama", "appliance"),
    [((), False, False), (("appliance",), False, True), (("ollama",), True, True)],
)
def test_a_changed_engine_takes_the_appliance_with_it_and_not_the_other_way_round(
    parts: tuple[str, ...], ollama: bool, appliance: bool
) -> None:
    given = {"rollout__compared": compared(*parts)}
    assert found("rollout__ollama_changes", **given) is ollama
    assert found("rollout__appliance_changes", **given) is appliance


@pytest.mark.parametrize("changed", ["ollama__configured", "ollama__switched"])
def test_in_check_mode_what_would_be_written_counts(changed: str) -> None:
    assert found("rollout__appliance_changes", ansible_check_mode=True, **{changed: CHANGED}) is True
    assert found("rollout__appliance_changes", ansible_check_mode=False, **{changed: CHANGED}) is False


@pytest.mark.parametrize(
    ("given", "is_undisturbed"),
    [
        ({}, True),
        ({"rollout__drained": {"failed": True}}, True),
        ({"rollout__drained": {"failed": False}}, False),
        ({"rollout__drained": {"skipped": True}}, False),
        ({"rollout__sorted": compared("ollama")}, False),
    ],
    ids=["failed before the drain", "drain failed", "drained", "nothing had changed", "an earlier run was cut short"],
)
def test_a_node_is_resumed_without_a_restart_only_where_it_runs_what_is_put_back(
    given: dict[str, Any], is_undisturbed: bool
) -> None:
    assert found("rollout__is_undisturbed", **given) is is_undisturbed


@pytest.mark.parametrize(
    ("began", "restored", "restarts"),
    [((), (), True), (("appliance",), (), False), (("ollama",), (), True), ((), ("ollama",), True)],
)
def test_the_engine_is_started_anew_where_it_changed_or_where_nothing_explains_the_failure(
    began: tuple[str, ...], restored: tuple[str, ...], restarts: bool
) -> None:
    given = {"rollout__compared": compared(*began), "rollout__restored": compared(*restored)}
    assert found("rollout__ollama_restarts", **given) is restarts


@pytest.mark.parametrize(
    ("tags", "switched"),
    [
        (["all"], ["ollama", "appliance"]),
        (["ollama"], ["ollama"]),
        (["rollout"], []),
        (["appliance", "x"], ["appliance"]),
    ],
)
def test_with_tags_only_what_this_run_laid_out_takes_effect(tags: list[str], switched: list[str]) -> None:
    assert found("rollout__switched", ansible_run_tags=tags) == switched


def test_without_a_switch_the_version_in_place_is_awaited_whatever_the_inventory_says() -> None:
    given = {"ollama_version": "0.35.0", "ollama__found": {"current": "0.34.4-rc1-96f50a11"}}
    assert found("rollout__ollama_version", **given) == "0.35.0"
    assert found("rollout__ollama_version", rollout_switch=[], **given) == "0.34.4-rc1"


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("192.168.1.5", "192.168.1.5"), ("fd00::5", "[fd00::5]")],
)
def test_readiness_is_asked_where_the_appliance_listens(host: str, asked: str) -> None:
    assert found("rollout__ready_url", appliance_host=host, appliance_port=8001) == f"http://{asked}:8001/ready"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"msg": "non-zero return code", "stderr": "Error: still busy\n"}, "Error: still busy"),
        ({"msg": "Unable to restart service", "stderr": ""}, "Unable to restart service"),
        (
            {
                "msg": "One or more items failed",
                "results": [{"failed": False, "msg": "x"}, {"failed": True, "msg": "PORT is 0"}],
            },
            "PORT is 0",
        ),
    ],
)
def test_the_reason_of_a_failure_is_what_the_task_itself_said(result: dict[str, Any], words: str) -> None:
    assert found("rollout__reason", ansible_failed_result=result) == words


def test_every_file_that_a_service_reads_at_its_start_is_part_of_a_deployment() -> None:
    parts = yaml.safe_load((roles.ROLES / "rollout/vars/main.yml").read_text())["rollout__parts"]
    written = {f"/{name}" for role in parts for name in roles.templates(role)} - {"/usr/local/bin/pi-llm"}
    assert written <= {path for paths in parts.values() for path in paths}


@pytest.mark.parametrize(
    ("tags", "switch", "missing", "is_refused"),
    [
        (["appliance"], ["ollama", "appliance"], ["ollama"], True),
        (["ollama"], ["ollama", "appliance"], ["appliance"], False),
        (["all"], ["appliance"], ["ollama"], True),
        (["all"], [], ["ollama", "appliance"], True),
        (["all"], ["ollama"], ["appliance"], True),
    ],
    ids=["--tags appliance", "--tags ollama, the first of two runs", "deploy.yml", "profile.yml", "Ollama alone"],
)
def test_a_new_node_that_would_not_serve_in_the_end_is_refused_before(
    tags: list[str], switch: list[str], missing: list[str], is_refused: bool
) -> None:
    (look,) = yaml.safe_load((roles.ROLES / "rollout/tasks/ahead.yml").read_text())
    (condition,) = [
        task["ansible.builtin.assert"]["that"] for task in look["block"] if "ansible.builtin.assert" in task
    ]
    looked = {"results": [{"item": item, "stat": {"exists": False}} for item in missing]}
    given = {"ansible_run_tags": tags, "rollout_switch": switch, "rollout__links_found": looked}
    assert found(condition, **given) is not is_refused


def test_a_new_node_is_told_which_part_neither_this_run_nor_an_earlier_one_brought() -> None:
    looked = {
        "results": [{"item": "ollama", "stat": {"exists": True}}, {"item": "appliance", "stat": {"exists": False}}]
    }
    assert found("rollout__missing", rollout__links_found=looked) == ["appliance"]
    assert found("rollout__missing", rollout__links_found={"results": []}) == []
