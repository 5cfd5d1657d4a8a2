"""verify.yml's table: a line a node, and what is wrong below."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent.parent / "ansible" / "filter_plugins" / "fleet_table.py"
spec = importlib.util.spec_from_file_location("fleet_table", SOURCE)
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def serving(**others: Any) -> dict[str, Any]:
    return {
        "model_name": "qwen2.5:3b",
        "rollout__state": {
            "units": {"ollama": {"restarts": 1}, "pi-llm": {"restarts": 2}},
            "releases": {"appliance": "0.1.0-5d41402a", "ollama": "0.34.4-96f50a11"},
            "ollama_version": "0.34.4",
            "digest": "357c53fb659c5076de1d65ccb0b3",
            "ready": {"http_status": 200},
            "disk_free_mib": 20480,
            "problems": [],
        },
        "rollout__probe_report": {"tokens_per_s": 5.31},
        "rollout__problems": [],
        **others,
    }


def test_a_serving_node_is_one_line() -> None:
    lines = module.fleet_table(["pi1"], {"pi1": serving()})
    assert lines[1].split()[:6] == ["pi1", "0.1.0-5d41402a", "0.34.4", "qwen2.5:3b", "357c53fb659c", "yes"]
    assert lines[1].endswith("as it should be")
    assert len(lines) == 2


def test_columns_are_aligned() -> None:
    lines = module.fleet_table(["pi1", "a-long-name"], {"pi1": serving(), "a-long-name": serving()})
    assert {line.index("0.34.4") for line in lines[1:]} == {lines[0].index("OLLAMA")}


def test_a_node_that_was_not_reached_says_so() -> None:
    assert module.fleet_table(["pi1"], {"pi1": {"model_name": "x"}})[1].endswith("not reached")


def test_what_is_wrong_stands_below_with_the_nodes_name() -> None:
    lines = module.fleet_table(["pi1", "pi2"], {"pi1": serving(), "pi2": serving(rollout__problems=["no generation"])})
    assert lines[2].endswith("1 to mend")
    assert lines[3:] == ["pi2: no generation"]


def test_a_node_has_no_problems_when_all_is_well() -> None:
    assert module.node_problems({"problems": []}, {"rc": 0}, True, True) == []


def test_every_kind_of_problem_is_told() -> None:
    failed = {"rc": 1, "stderr": "waiting: loading the model\nError: not ready: loading"}
    problems = module.node_problems({"problems": ["ollama.service is failed"]}, failed, False, False)
    assert problems[:2] == ["ollama.service is failed", "no generation: Error: not ready: loading"]
    assert [problem.rpartition("(")[2] for problem in problems[2:]] == [
        "site.yml makes them so)",
        "profile.yml writes them)",
    ]


def test_a_stale_profile_is_told_and_is_no_fault() -> None:
    facts = serving(rollout__stale=["Ollama's version was 1 when it was measured, and is 2 now"])
    lines = module.fleet_table(["pi1"], {"pi1": facts})
    assert lines[1].endswith("profile stale")
    assert lines[2].startswith("pi1: its tuned profile is stale: Ollama's version was 1 when it was measured, and is 2")


def test_a_fault_is_more_than_a_stale_profile() -> None:
    facts = serving(rollout__stale=["the board was A"], rollout__problems=["no generation"])
    lines = module.fleet_table(["pi1"], {"pi1": facts})
    assert lines[1].endswith("1 to mend")
    assert len(lines) == 4
