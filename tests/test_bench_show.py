"""The rows of `bench show`, from facts alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench_runs import made, stage_of
from report_results import node_facts, tuned, write

from bench.inventory.tuned_profile import Provenance, TunedProfile
from bench.report.data import block_speed, view
from bench.running.newest_run import newest_blocks
from bench.running.samples import Run, Settings
from bench.show import row, table

NOW = datetime(2026, 1, 11, tzinfo=UTC)
FACTS: dict[str, Any] = {
    "board": {"name": "Raspberry Pi 5"},
    "model": {"name": "qwen2.5:3b", "size_bytes": 2_000_000_000},
    "engine": {"version": "0.32.15"},
    "settings": {"N_CTX": 512},
    "throttling": {"bits": "0x0", "now": [], "since_boot": []},
    "bandwidth": {"bytes_per_s": 16_000_000_000},
}


def run(concurrency: int = 1, facts: dict[str, Any] = FACTS) -> Run:
    samples = [made(at_s=k, number=k, tpot_s=0.2) for k in range(10)]
    settings = Settings(seed=1, prompt_tokens=(40,), max_tokens=5, loads=(), requests=10)
    return Run(
        id="r", session="s", node="pi1", url="http://x", bench_version="1", settings=settings,
        started_at="2026-01-10T23:00:00+00:00", fingerprint={"node": facts},
        stages=[stage_of(*samples, concurrency=concurrency)],
    )  # fmt: skip


def profile(**rests_on: str) -> TunedProfile:
    provenance = Provenance(run="r", at="2026-01-01T00:00:00Z", **rests_on)
    return TunedProfile(env={"N_CTX": 512}, measured={}, provenance=provenance)


def test_a_row_has_the_speed_with_its_interval_and_its_share_of_the_roofline() -> None:
    found = row("pi1", FACTS, profile(), view(run()), NOW)
    assert found.decode_tokens_per_s is not None
    assert round(found.decode_tokens_per_s.value, 6) == 5.0
    assert found.n == 10
    assert found.of_roofline is not None
    assert round(found.of_roofline, 3) == 0.625
    text = table([found])
    assert "63%" in text
    assert "10 days" in text


def test_a_stale_profile_and_one_that_is_not_in_force_are_told() -> None:
    facts = {**FACTS, "settings": {"N_CTX": 1024}}
    text = table([row("pi1", facts, profile(ollama="0.30.0"), None, NOW)])
    assert "10 days, stale, not in force" in text
    assert "Ollama's version was 0.30.0" in text
    assert "N_CTX is 1024 on the node and should be 512" in text


def test_what_a_node_said_before_its_profile_was_found_says_nothing_of_the_profile() -> None:
    then = view(run(facts={**FACTS, "settings": {"N_CTX": 1024}}))
    older = profile(ollama="0.30.0")
    newer = msgspec.structs.replace(older, provenance=Provenance(run="r", at="2026-01-10T23:30:00Z", ollama="0.30.0"))
    found = row("pi1", None, newer, then, NOW)
    assert (found.stale, found.not_in_force) == ((), "")
    found = row("pi1", None, older, then, NOW)
    assert (len(found.stale), found.not_in_force[:16]) == (1, "N_CTX is 1024 on")


def test_the_settings_that_a_tune_tried_are_not_taken_for_those_in_force() -> None:
    tune = tuned()
    tune.fingerprint = {"node": node_facts()}
    other = msgspec.structs.replace(profile(), env={"N_CTX": 768})
    assert row("pi1", None, other, block_speed(tune), NOW).not_in_force == ""


def test_a_node_that_does_not_answer_is_shown_by_what_it_said_last() -> None:
    found = row("pi1", None, None, view(run()), NOW, "pi1: nothing answers")
    assert (found.board, found.problem) == ("Raspberry Pi 5", "pi1: nothing answers")
    assert "pi1: nothing answers" in table([found])


def test_throttling_of_the_past_is_shown_and_none_is_no() -> None:
    bits = {"bits": "0x50000", "now": [], "since_boot": ["undervoltage"]}
    assert row("pi1", {**FACTS, "throttling": bits}, None, None, NOW).throttled == ("undervoltage",)
    assert row("pi1", FACTS, None, None, NOW).throttled == ()
    assert row("pi1", {**FACTS, "throttling": None}, None, None, NOW).throttled is None


def test_the_roofline_is_that_of_the_model_and_memory_that_were_measured() -> None:
    larger = {**FACTS, "model": {"name": "qwen2.5:7b", "size_bytes": 5_000_000_000}, "bandwidth": None}
    found = row("pi1", larger, None, view(run()), NOW)
    assert found.of_roofline == pytest.approx(0.625)
    assert "the model was qwen2.5:3b when its speed was measured, and is qwen2.5:7b now" in table([found])


def test_a_bandwidth_that_was_measured_after_the_run_counts_on_the_same_board() -> None:
    without = {**FACTS, "bandwidth": None}
    assert row("pi1", FACTS, None, view(run(facts=without)), NOW).of_roofline == pytest.approx(0.625)
    elsewhere = {**FACTS, "board": {"name": "Raspberry Pi 4"}}
    assert row("pi1", elsewhere, None, view(run(facts=without)), NOW).of_roofline is None


def test_a_stream_among_others_has_no_roofline_and_is_told() -> None:
    found = row("pi1", FACTS, None, view(run(concurrency=2)), NOW)
    assert found.of_roofline is None
    assert "that of a stream among others (2 at once)" in table([found])


def test_a_share_above_the_whole_is_doubted() -> None:
    slow = {**FACTS, "bandwidth": {"bytes_per_s": 8e9}}
    assert "faster than its memory was measured to be" in table([row("pi1", slow, None, view(run(facts=slow)), NOW)])


def test_settings_that_changed_since_the_run_are_told() -> None:
    text = table([row("pi1", {**FACTS, "settings": {"N_CTX": 1024}}, None, view(run()), NOW)])
    assert "N_CTX was 512 when its speed was measured, and is 1024 now" in text
    assert "was" not in table([row("pi1", FACTS, None, view(run()), NOW)])


def test_a_node_that_was_only_tuned_is_shown_by_its_winners_blocks() -> None:
    tune = tuned()
    tune.fingerprint = {"model": "qwen2.5:3b", "node": node_facts(settings={"N_CTX": 1})}
    found = row("pi1", None, None, block_speed(tune), NOW)
    assert found.decode_tokens_per_s is not None
    assert found.of_roofline == pytest.approx(found.decode_tokens_per_s.value * 1929912432 / 13.1e9)
    assert (found.source, found.load, found.board) == ("bench tune", "", "Raspberry Pi 5 Model B Rev 1.1")
    assert "its decode speed is that of bench tune's blocks" in table([found])


def test_the_settings_of_blocks_are_those_that_were_tried_not_those_in_force_meanwhile() -> None:
    tune = tuned()
    assert tune.profile
    tune.fingerprint = {"node": node_facts(settings={"N_CTX": 1})}
    deployed, before = (node_facts(settings=env) for env in (tune.profile.env, {"N_CTX": 1}))
    assert row("pi1", deployed, None, block_speed(tune), NOW).measured_otherwise == ()
    assert "is 1 now" in row("pi1", before, None, block_speed(tune), NOW).measured_otherwise[0]


def test_the_newest_of_tune_and_verification_stands_for_a_node(tmp_path: Path) -> None:
    write(tmp_path, tuned("pi1"))
    found = newest_blocks(tmp_path, "pi1")
    assert found is not None
    assert found.source == "bench tune"
    (tmp_path / "pi1" / "20270101T000000Z-verify-000000.json").write_text("{}")
    assert newest_blocks(tmp_path, "pi1") == found
    assert newest_blocks(tmp_path, "pi2") is None
