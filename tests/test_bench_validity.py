"""What speaks against a run: each cause with its reason and remedy, and none against a clean run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from bench_runs import failed, made, run_of, stage_of

from bench.running.lateness import Reading, cost, worse
from bench.running.samples import ClientCost, ClosedLoop, Facts, Load, OpenLoop, Run, Sample
from bench.running.validity import GENERATIONS, LOADS, marks


def sitting(*samples: Sample, generations: float, loads: float = 0.0) -> Run:
    before = Facts(0.0, "before", counters={GENERATIONS: 100.0, LOADS: 1.0})
    after = Facts(99.0, "after", counters={GENERATIONS: 100.0 + generations, LOADS: 1.0 + loads})
    return run_of(stage_of(*samples), facts=[before, after])


def codes(run: Run) -> list[str]:
    return [mark.code for mark in marks(run)]


def test_a_clean_run_has_no_mark() -> None:
    assert marks(sitting(made(1.0), made(5.0), generations=2)) == []


def test_requests_of_others_are_seen_by_the_nodes_own_count() -> None:
    (mark,) = marks(sitting(made(1.0), made(5.0), generations=5))
    assert mark.reason == "the node served others too: 3 of 5 generations were not ours"
    assert mark.is_invalid


def test_a_request_that_was_cut_off_may_have_been_counted_or_not() -> None:
    assert codes(sitting(made(1.0), failed(5.0, kind="cut_off"), generations=2)) == []
    assert codes(sitting(made(1.0), failed(5.0, kind="cut_off"), generations=1)) == []


def test_a_restart_is_seen_by_counters_that_went_back() -> None:
    assert codes(sitting(made(1.0), generations=-90)) == ["restarted"]


def test_a_load_during_the_run_is_seen() -> None:
    assert codes(sitting(made(1.0), generations=1, loads=1)) == ["reloaded"]
    assert codes(run_of(stage_of(made(counts={"load_ms": 4000.0})))) == ["reloaded"]


def test_only_prompts_that_the_engine_knew_beyond_the_template_are_held_against_it() -> None:
    assert codes(run_of(stage_of(made(counts={"cached_tokens": 20})))) == []  # the calibration's overhead is 20
    assert codes(run_of(stage_of(made(counts={"cached_tokens": 39})))) == ["cached_prompts"]


def test_short_answers_and_other_lengths_are_noted_and_decide_nothing() -> None:
    (mark,) = marks(run_of(stage_of(made(tokens=3))))
    assert (mark.code, mark.is_invalid) == ("short_answers", False)
    (mark,) = marks(run_of(stage_of(made(counts={"prompt_tokens": 55}))))
    assert (mark.code, mark.is_invalid) == ("prompt_lengths", False)


@pytest.mark.parametrize(
    ("lag_p99_ms", "ttft_s", "expected"), [(19.0, 0.01, []), (21.0, 0.01, ["client_late"]), (90.0, 1.0, [])]
)
def test_a_late_client_measured_itself(lag_p99_ms: float, ttft_s: float, expected: list[str]) -> None:
    cost = ClientCost(lag_p50_ms=1.0, lag_p99_ms=lag_p99_ms, lag_max_ms=200.0, cpu_share=0.3)
    assert codes(run_of(stage_of(made(ttft_s=ttft_s)), client=cost)) == expected


def test_a_client_that_needs_all_its_core_is_the_bottleneck() -> None:
    assert codes(run_of(stage_of(made()), client=ClientCost(1.0, 1.0, 1.0, cpu_share=0.95))) == ["client_busy"]


def test_a_clients_cost_is_of_the_time_between_its_readings() -> None:
    before = Reading((5, 0, 0), at=10.0, cpu_s=1.0)
    after = Reading((5, 98, 2), at=20.0, cpu_s=3.0)
    found = cost(before, after)
    assert found is not None
    assert found.cpu_share == 0.2
    assert found.lag_p50_ms < found.lag_p99_ms == found.lag_max_ms
    assert cost(after, after) is None


def test_a_board_that_throttled_between_two_looks_makes_the_run_invalid_with_the_remedy() -> None:
    run = sitting(made(1.0), generations=1)
    looks = ({"throttling_seen": {"times": {}}}, {"throttling_seen": {"times": {"undervoltage": 3}}})
    facts = [Facts(f.at_s, f.moment, node, None, f.counters) for f, node in zip(run.facts, looks, strict=True)]
    (mark,) = marks(run_of(*run.stages, facts=facts))
    assert (mark.code, mark.is_invalid) == ("undervoltage", True)
    assert "27 W" in mark.remedy


def cut_off(*samples: Sample, generations: float, then: Sequence[Facts] = ()) -> Run:
    """A sitting without a look after it: the last one was taken during it."""
    whole = sitting(*samples, generations=generations)
    throttled = {"throttling_seen": {"times": {"undervoltage": 1}}}
    before = msgspec.structs.replace(whole.facts[0], node={"throttling_seen": {"times": {}}})
    during = msgspec.structs.replace(whole.facts[1], moment="during", at_s=9.0, node=throttled)
    gone = Facts(10.0, "during")
    return run_of(*whole.stages, facts=[before, during, gone, *then])


@pytest.mark.parametrize("then", [[], [Facts(99.0, "before"), Facts(120.0, "after")]])
def test_a_sitting_that_was_cut_off_is_judged_until_the_last_look_at_it(then: list[Facts]) -> None:
    assert codes(cut_off(made(1.0), generations=3, then=then)) == ["other_requests", "undervoltage"]


def test_a_request_that_was_sent_while_it_was_looked_at_is_no_others() -> None:
    assert codes(cut_off(made(1.0), made(9.5), generations=2)) == ["undervoltage"]


def test_of_two_sittings_the_worse_client_counts_for_both() -> None:
    slow, quick = ClientCost(5.0, 90.0, 99.0, 0.1), ClientCost(6.0, 20.0, 30.0, 0.9)
    assert worse(slow, quick) == ClientCost(6.0, 90.0, 99.0, 0.9)
    assert (worse(None, quick), worse(slow, None), worse(None, None)) == (quick, slow, None)


def at_clock(mhz: int, governor: str) -> dict[str, Any]:
    return {"governor": governor, "clocks": {"now": [mhz], "measured": None}}


def run_with_clocks(load: Load, governor: str, *mhz: int) -> Run:
    """Looks a second apart, the first before the stage and the last after it."""
    stage = stage_of(made(0.5), load=load, ended_s=len(mhz) - 1.5, full_until_s=len(mhz) - 1.5)
    facts = [Facts(float(i), "during", at_clock(each, governor)) for i, each in enumerate(mhz)]
    facts[0], facts[-1] = (
        msgspec.structs.replace(f, moment=m) for f, m in ((facts[0], "before"), (facts[-1], "after"))
    )
    return run_of(stage, facts=facts)


def test_a_clock_that_fell_while_measuring_makes_the_run_invalid_with_reason_and_remedy() -> None:
    (mark,) = marks(run_with_clocks(ClosedLoop(1), "ondemand", 1500, 2400, 2400, 1800, 1500))
    assert (mark.code, mark.is_invalid) == ("clock_drop", True)
    assert mark.reason == "the processor's clock fell from 2400 to 1800 MHz"
    assert "cool the board" in mark.remedy


def test_a_processor_that_idled_between_an_open_loops_requests_is_not_blamed() -> None:
    assert codes(run_with_clocks(OpenLoop(0.1), "ondemand", 1500, 2400, 1500, 2400, 1500)) == []
    assert codes(run_with_clocks(OpenLoop(0.1), "performance", 2400, 2400, 1500, 2400, 2400)) == ["clock_drop"]
