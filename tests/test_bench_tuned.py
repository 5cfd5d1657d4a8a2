"""What is raced for on a node, what speaks against a block, and which arms a verification compares. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.running import runfile
from bench.running.board_validity import marks
from bench.running.client import Target
from bench.running.samples import Failure
from bench.statistics.comparison import LOOKS
from bench.tuning.arms import LEAST_ROUNDS, NothingToVerify, arms, looks_of, verdict
from bench.tuning.block import REFUSED, Busy, Gone, Question, Ran, SettingsRefused, meaning
from bench.tuning.blocks import BlockRecord
from bench.tuning.judgement import FateName
from bench.tuning.meter import streams_of
from bench.tuning.objective import Figures
from bench.tuning.outcome import Fate, Outcome, Status
from bench.tuning.space import Settings
from bench.tuning.tune_file import TuneRun
from bench.tuning.tune_table import before_after, change, table
from bench.tuning.tuned import Wanted, metric, plan, profile, why_not
from bench.tuning.verify_file import Round, VerifyRun

GENERATED: dict[str, Any] = {
    "context_size": 512, "threads": 4, "batch_size": 128, "warm_up": False, "latency_ms": 1000.0, "ttft_ms": 100.0,
    "load_ms": 0.0, "prompt_tokens": 8, "completion_tokens": 8, "finish_reason": "length",
}  # fmt: skip
PI: dict[str, Any] = {"board": {"cores": 4}, "model": {"trained_context": 2048}, "memory": {"total_mib": 4096}}
OWN = {"N_CTX": 512, "N_THREADS": 4, "N_BATCH": 128}
HEADER: dict[str, Any] = {
    "id": "t", "session": "s", "node": "pi1", "url": "http://x", "bench_version": "1",
    "started_at": "2026-01-01T00:00:00+00:00", "question": Question(),
}  # fmt: skip
TARGET = Target("pi1", "http://pi1:8000", "a key")


def axis(found: Any, name: str) -> tuple[Any, ...]:
    values: tuple[Any, ...] = next(axis.values for axis in found.space.axes if axis.name == name)
    return values


def test_contexts_beyond_the_models_training_are_not_tried() -> None:
    assert axis(plan(Wanted(), PI, OWN), "N_CTX") == (512, 1024, 2048)


def test_a_machine_with_four_cores_tries_two_three_and_four_threads() -> None:
    assert axis(plan(Wanted(), PI, OWN), "N_THREADS") == (2, 3, 4)


def test_what_the_node_has_is_always_one_of_the_settings() -> None:
    found = plan(Wanted(n_batch=(64,)), PI, {**OWN, "N_BATCH": 96})
    assert axis(found, "N_BATCH") == (64, 96)
    assert found.default in found.space


def test_memory_is_limited_by_what_is_to_stay_free() -> None:
    assert plan(Wanted(headroom_mib=1024), PI, OWN).limits.max_memory_mib == 3072
    assert plan(Wanted(), None, OWN).limits.max_memory_mib is None


def test_a_quantized_cache_without_flash_attention_is_no_candidate() -> None:
    found = plan(Wanted(with_restarts=True), PI, OWN).space.settings
    pairs = {(s.env["OLLAMA_FLASH_ATTENTION"], s.env["OLLAMA_KV_CACHE_TYPE"]) for s in found}
    assert ("off", "q8_0") not in pairs
    assert ("auto", "q8_0") in pairs


def test_slots_are_tried_as_they_were_asked_for_and_what_the_node_has() -> None:
    found = plan(Wanted(with_restarts=True, slots=(3,)), PI, {**OWN, "MAX_CONCURRENT_REQUESTS": 2})
    assert axis(found, "MAX_CONCURRENT_REQUESTS") == (2, 3)
    assert "MAX_CONCURRENT_REQUESTS" not in plan(Wanted(), PI, OWN).default.env


def test_a_context_or_a_ttft_beyond_the_limits_is_of_the_plan() -> None:
    limits = plan(Wanted(min_ctx=1024, max_ttft_ms=800.0), PI, OWN).limits
    assert (limits.min_ctx, limits.max_ttft_ms) == (1024, 800.0)


def test_a_metrics_interval_holds_its_median() -> None:
    found = metric([5.0, 5.1, 9.0])
    assert found.ci95[0] <= found.median <= found.ci95[1]


def raced(
    is_better: bool,
    name: FateName = "worse",
    gain: float | None = 0.5,
    ci95: tuple[float, float] | None = (0.4, 0.6),
    reason: str = "",
) -> TuneRun:
    """name, reason: what became of the settings that the node has. gain: what the winner gains over them."""
    found = plan(Wanted(), PI, OWN)
    best = next(settings for settings in found.space.settings if settings != found.default)
    was, now = Fate(found.default, name, 2, reason=reason), Fate(best, "winner", 2)
    outcome = Outcome("budget", now, was, gain, ci95, is_better, (was, now), 4, 1.0, 48)
    return TuneRun(**HEADER, plan=found, blocks=[], outcome=outcome)


def test_a_winner_that_is_surely_better_is_written() -> None:
    assert why_not(raced(is_better=True)) == ""


def test_a_winner_that_may_be_no_better_is_not_written_and_what_may_help_is_said() -> None:
    assert "A larger --budget may tell; is the machine busy?" in why_not(raced(is_better=False))


SMALL = "its context is smaller than asked for"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (raced(True), "faster by 50 % (95 % CI 40-60)"),
        (
            raced(True, "ruled out", -0.2, (-0.25, -0.15), SMALL),
            f"slower by 20 % (95 % CI 15-25); what the node had is ruled out: {SMALL}",
        ),
        (raced(True, "ruled out", None, None, SMALL), f"unknown; what the node had is ruled out: {SMALL}"),
        (
            raced(False, "undecided", -0.01, (-0.04, 0.02)),
            "no significant difference (-1.0 %, 95 % CI -4.0 to +2.0); the race is not sure that it is better",
        ),
        (
            raced(True, "tied", 0.005, (-0.01, 0.01)),
            "no significant difference (+0.5 %, 95 % CI -1.0 to +1.0); preferred among equals",
        ),
    ],
    ids=["better", "slower, but allowed", "never measured", "forced", "tied"],
)
def test_what_a_winner_gains_is_said_as_it_is(run: TuneRun, said: str) -> None:
    assert run.outcome is not None
    assert change(run.outcome) == said
    assert before_after([run]).splitlines()[1].endswith(f"| {said}")
    assert (f"beside {run.plan.default}: {said}; " in table(run)) is run.outcome.is_better


def test_a_throttled_blocks_pace_does_not_make_answers_shorter() -> None:
    run = raced(is_better=True)
    assert run.outcome is not None
    assert run.outcome.winner is not None
    winner = run.outcome.winner.settings
    slow, quick = (Ran(**GENERATED, decode_tokens_per_second=rate) for rate in (1.0, 10.0))
    alone = msgspec.structs.replace(measured(winner, 10.0), samples=[quick])
    throttled = msgspec.structs.replace(measured(winner, 1.0, "invalid"), samples=[slow, slow])
    first, second = (profile(msgspec.structs.replace(run, blocks=each)) for each in ([alone], [alone, throttled]))
    assert first is not None
    assert second is not None
    assert first.env["MAX_TOKENS"] == second.env["MAX_TOKENS"]


def node(**fields: Any) -> dict[str, Any]:
    return {
        "boot_id": "a", "throttling": {"now": [], "since_boot": []}, "throttling_seen": {"times": {}},
        "model": {"digest": "a"}, "engine": {"version": "0.34.4"}, "governor": "performance",
        "clocks": {"now": [2400], "max": 2400, "measured": None}, **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("after", "code"),
    [
        ({"boot_id": "b"}, "rebooted"),
        ({"throttling_seen": {"times": {"undervoltage": 2}}}, "undervoltage"),
        ({"throttling": {"now": ["throttled"], "since_boot": ["throttled"]}}, "throttled"),
        ({"throttling": {"now": [], "since_boot": ["frequency_capped"]}}, "frequency_capped"),
        ({"model": {"digest": "b"}}, "changed"),
        ({"engine": {"version": "0.35.0"}}, "changed"),
        ({"clocks": {"now": [2250], "max": 2400, "measured": None}}, "clock_drop"),
        ({"clocks": {"now": [2400], "max": 2400, "measured": 1800}}, "clock_drop"),
    ],
)
def test_what_happened_during_a_block_makes_it_invalid(after: dict[str, Any], code: str) -> None:
    found = marks(node(), node(**after))
    assert [mark.code for mark in found] == [code]
    assert found[0].remedy


def clocked(mhz: int, governor: str = "performance") -> dict[str, Any]:
    return node(governor=governor, clocks={"now": [mhz], "max": 2400, "measured": None})


def test_a_clock_that_fell_in_the_middle_is_seen_and_a_step_of_it_is_not() -> None:
    (mark,) = marks(clocked(2400), clocked(2400), [clocked(2400), clocked(1500)])
    assert mark.reason == "the processor's clock fell from 2400 to 1500 MHz"
    assert "27 W" in mark.remedy
    assert mark.is_invalid
    assert marks(clocked(2400), clocked(2400), [clocked(2300)]) == []


def test_a_processor_that_idles_before_and_after_has_no_drop() -> None:
    idle, busy, capped = clocked(1500, "ondemand"), clocked(2400, "ondemand"), clocked(2000, "ondemand")
    assert marks(busy, idle, [busy, busy]) == marks(idle, idle) == []
    (mark,) = marks(idle, idle, [busy, capped])
    assert "performance" in mark.remedy


def test_a_machine_that_tells_no_clocks_has_no_drop() -> None:
    assert marks(node(clocks=None), node(clocks={"now": [], "measured": None})) == []


def test_swapping_counts_from_a_megabyte() -> None:
    before, little, much = (node(memory={"pages_swapped_in": n, "pages_swapped_out": 0}) for n in (10, 20, 5000))
    assert marks(before, little) == []
    assert [mark.code for mark in marks(before, much)] == ["swapping"]


def test_what_was_so_before_the_block_is_not_held_against_it() -> None:
    bits = {
        "throttling": {"now": [], "since_boot": ["undervoltage"]},
        "throttling_seen": {"times": {"undervoltage": 3}},
    }
    assert marks(node(**bits), node(**bits)) == []
    assert marks(None, node()) == []


@pytest.mark.parametrize("code", REFUSED)
def test_what_the_engine_cannot_run_is_said_of_the_settings(code: str) -> None:
    assert isinstance(meaning(TARGET, Failure("event", code, detail="no")), SettingsRefused)


def test_a_node_that_is_used_or_silent_is_no_fault_of_the_settings() -> None:
    assert isinstance(meaning(TARGET, Failure("status", "wait_timeout", 504)), Busy)
    assert isinstance(meaning(TARGET, Failure("status", "not_ready", 503)), Busy)
    assert isinstance(meaning(TARGET, Failure("cut_off")), Gone)


def test_arms_name_all_that_a_request_carries() -> None:
    old, new = arms("pi1", {"N_THREADS": 3}, {"N_THREADS": 2}, with_restarts=False)
    assert (old.env["N_THREADS"], new.env["N_THREADS"]) == (3, 2)
    assert set(old.env) == {"N_CTX", "N_THREADS", "N_BATCH"}


def test_profiles_that_differ_in_nothing_measurable_are_not_compared() -> None:
    with pytest.raises(NothingToVerify, match="same settings"):
        arms("pi1", {"MAX_TOKENS": 96}, {"MAX_TOKENS": 128}, with_restarts=True)


def test_a_restart_is_compared_only_where_it_is_allowed() -> None:
    old, new = {"MAX_CONCURRENT_REQUESTS": 1}, {"MAX_CONCURRENT_REQUESTS": 2}
    with pytest.raises(NothingToVerify, match="--restarts"):
        arms("pi1", old, new, with_restarts=False)
    first, second = arms("pi1", old, new, with_restarts=True)
    assert (streams_of(first, "throughput"), streams_of(second, "throughput")) == (1, 2)
    assert streams_of(second, "latency") == 1


def test_slots_are_one_stream_where_they_are_not_raced_for() -> None:
    assert streams_of(Settings.of(N_CTX=512), "throughput") == 1


def test_looks_are_planned_and_enough_for_a_verdict() -> None:
    assert looks_of(None) == LOOKS
    assert looks_of(6) == (6,)
    assert looks_of(20) == (10, 15, 20)


def measured(settings: Settings, rate: float, status: Status = "measured") -> BlockRecord:
    return BlockRecord(settings=settings, status=status, began_s=0.0, cost_s=1.0, figures=Figures(rate, 100.0, 50.0))


@pytest.mark.parametrize("rounds", range(LEAST_ROUNDS, 26))
def test_a_verification_can_be_read_again_after_every_round(tmp_path: Path, rounds: int) -> None:
    run = VerifyRun(**HEADER, looks=looks_of(rounds), old=Settings.of(N_CTX=512), new=Settings.of(N_CTX=1024))
    for number in range(rounds):
        change = 1.01 if number % 2 else 0.99
        run.rounds.append(Round(measured(run.old, 10.0 + number), measured(run.new, (10.0 + number) * change)))
        run.verdict = verdict(run)
        assert runfile.read(runfile.save(run, tmp_path), VerifyRun) == run
    assert run.verdict is not None
    assert run.verdict.is_final
