"""What a report takes from a folder of results: all that can be read, and no more than it may believe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from report_page import node_of, page_of
from report_results import SETTINGS, SLOWER, measured_run, node_facts, tuned, verified, write

from bench.inventory import tuned_file
from bench.inventory.tuned_profile import Measured, Provenance, TunedProfile
from bench.report.data import changed, gathered, throttling
from bench.report.profile import ProfileView, profile_of
from bench.running.samples import Facts, Run
from bench.tuning.verify_file import VerifyRun

PROFILE = TunedProfile(
    env={"N_CTX": 512, "N_THREADS": 4},
    measured={"decode_tokens_per_s": Measured(median=5.3, ci95=(5.2, 5.4), n=12)},
    provenance=Provenance(run="r", at="2026-01-01T00:00:00Z", ollama="0.32.0"),
)


def test_runs_tunes_and_verifications_are_read_from_the_oldest(tmp_path: Path) -> None:
    write(tmp_path, measured_run(day=2), measured_run(day=1), tuned(), verified())
    (node,) = gathered(tmp_path).nodes
    assert [run.started_at[8:10] for run in node.runs] == ["01", "02"]
    assert (len(node.tunes), len(node.verifications)) == (1, 1)


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    write(tmp_path, measured_run())
    (tmp_path / "pi1" / "20260101T000000Z-run-000000.json").write_text("{")
    found = gathered(tmp_path)
    assert len(found.nodes[0].runs) == len(found.unreadable) == 1


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert gathered(tmp_path / "none").nodes == ()


def test_a_folder_without_results_is_no_node(tmp_path: Path) -> None:
    (tmp_path / "pi1").mkdir()
    assert gathered(tmp_path).nodes == ()


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ([], None),
        ([{"throttling": None}], None),
        ([{"throttling": {"now": []}}], ()),
        ([{"throttling": {"now": ["throttled"]}}], ("throttled",)),
        ([{"throttling": {"now": [], "since_boot": ["undervoltage"]}}], ()),
        (
            [
                {"throttling": {"now": []}, "throttling_seen": {"times": {"undervoltage": 1}}},
                {"throttling": {"now": []}, "throttling_seen": {"times": {"undervoltage": 2}}},
            ],
            ("undervoltage",),
        ),
    ],
)
def test_throttling_is_what_was_seen_during_the_run(told: list[dict[str, Any]], seen: object) -> None:
    assert throttling(told) == seen


def test_settings_that_one_side_did_not_tell_are_no_change() -> None:
    assert changed({}, SETTINGS) == changed(SETTINGS, {}) == []
    assert changed(SETTINGS, {**SETTINGS, "N_THREADS": 2}) == ["N_THREADS 4 → 2"]


def test_the_profile_is_the_inventorys_with_its_age_and_why_it_is_stale(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory"
    inventory.mkdir()
    tuned_file.write(inventory, "pi1", PROFILE)
    write(tmp_path / "results", measured_run(), tuned())
    (node,) = gathered(tmp_path / "results", [tmp_path / "none", inventory]).nodes
    found = profile_of(node)
    assert found
    assert (found.at, found.is_in_force, found.is_proposal) == ("2026-01-01T00:00:00Z", True, False)
    assert "0.32.0" in found.stale[0]


def test_a_profile_that_was_not_deployed_is_told_so(tmp_path: Path) -> None:
    write(tmp_path, measured_run(day=6, facts=node_facts(settings={"N_CTX": 128})), tuned())
    found = profile_of(gathered(tmp_path).nodes[0])
    assert found
    assert (found.is_in_force, found.is_proposal) == (False, True)


OLD_NODE = node_facts(settings={"N_CTX": 128, "N_THREADS": 4}, engine={"version": "0.30.0"})
IN_FORCE = node_facts(settings={"N_CTX": 512, "N_THREADS": 4}, engine={"version": "0.33.0"})
OF_DAY_5 = msgspec.structs.replace(PROFILE, provenance=Provenance(run="r", at="2026-01-05T12:10:00Z", ollama="0.33.0"))


def standing(*found: Run | VerifyRun) -> ProfileView:
    seen = profile_of(replace(node_of(*found), profile=OF_DAY_5))
    assert seen
    return seen


def test_a_run_that_is_older_than_the_profile_says_nothing_of_it() -> None:
    seen = standing(measured_run(day=1, facts=OLD_NODE))
    assert (seen.is_in_force, seen.stale) == (None, ())
    seen = standing(measured_run(day=1, facts=IN_FORCE), measured_run(day=6, facts=OLD_NODE))
    assert (seen.is_in_force, len(seen.stale)) == (False, 1)


def test_what_a_verification_saw_of_the_node_is_newer_than_the_run_before_the_profile() -> None:
    seen = standing(measured_run(day=1, facts=OLD_NODE), verified(before=Facts(0.0, "before", IN_FORCE)))
    assert (seen.is_in_force, seen.stale) == (True, ())
    seen = standing(verified(before=Facts(0.0, "before", OLD_NODE)))
    assert (seen.is_in_force, len(seen.stale)) == (False, 1)


def test_whether_a_profile_that_was_brought_back_is_in_force_only_a_newer_look_tells() -> None:
    gone = verified(verdict=SLOWER, restored=True, before=Facts(0.0, "before", OLD_NODE))
    assert (standing(gone).is_in_force, len(standing(gone).stale)) == (None, 1)
    assert standing(gone, measured_run(day=7, facts=IN_FORCE)).is_in_force is True


def test_a_profile_that_is_nonsense_is_told_of_and_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "inventory" / "host_vars" / "pi1" / "tuned.yml"
    path.parent.mkdir(parents=True)
    path.write_text("tuned_profile: [1, 2")
    write(tmp_path / "results", measured_run())
    found = gathered(tmp_path / "results", [tmp_path / "inventory"])
    assert len(found.nodes) == len(found.unreadable) == 1
    assert profile_of(found.nodes[0]) is None


@pytest.mark.parametrize("wrong", ["text", 3, ["list"], {"name": {}, "now": 5, "times": [], "size_bytes": "x"}])
def test_a_node_that_says_nonsense_of_itself_is_reported_all_the_same(tmp_path: Path, wrong: object) -> None:
    facts = dict.fromkeys(node_facts(), wrong)
    write(tmp_path, measured_run(facts=facts), tuned())
    assert "One stream" in page_of(*gathered(tmp_path).nodes).text
