"""A stage's figures: what is counted, over which time, and how sure each is."""

from __future__ import annotations

import msgspec
import pytest
from bench_runs import failed, made, run_of, stage_of

from bench.running.outcome import outcome
from bench.running.run_table import table
from bench.running.samples import Counts
from bench.running.summary import Estimate, Quantity, ServiceLevel, StageSummary, quantity, stage_summary, throughput


def summary_of(*samples: object, level: ServiceLevel | None = None, **fields: object) -> StageSummary:
    return stage_summary(stage_of(*samples, **fields), 5, level)  # type: ignore[arg-type]


def quantity_of(summary: StageSummary, name: str) -> Quantity:
    found = summary.quantities[name]
    assert found is not None
    return found


def test_warm_ups_are_in_no_figure_but_are_counted() -> None:
    warm_up = made(0.0, ttft_s=50.0, part="warm_up")
    summary = summary_of(warm_up, made(60.0), made(62.0))
    assert (summary.warm_ups, summary.requests, summary.answered) == (1, 2, 2)
    assert quantity_of(summary, "ttft_ms").p99.value == pytest.approx(1000.0)


def test_failures_are_counted_by_kind_and_are_in_no_latency() -> None:
    refusals = [failed(kind="status", status=429, code="queue_full") for _ in range(2)]
    summary = summary_of(made(), *refusals, failed(), failed(kind="event", code="engine_failed"))
    assert summary.failures == {"429 queue_full": 2, "refused": 1, "event engine_failed": 1}
    assert quantity_of(summary, "ttft_ms").n == 1


def test_answers_that_ended_early_are_counted() -> None:
    assert summary_of(made(), made(tokens=4), made(tokens=3)).ended_early == 2


def test_percentiles_say_how_sure_they_are_and_where_the_data_set_no_bound() -> None:
    p = quantity([float(value) for value in range(100)])
    assert p is not None
    assert p.p50.value == 49.5
    assert p.p50.low is not None
    assert p.p50.high is not None
    assert p.p50.low < 49.5 < p.p50.high
    assert p.p99.high is None  # of a hundred values none is surely above the p99


def test_no_values_have_no_figures() -> None:
    assert quantity([]) is None
    assert summary_of(failed()).quantities["ttft_ms"] is None


def test_throughput_is_of_the_time_in_which_the_load_was_full() -> None:
    two_at_once = [made(0.0, tpot_s=0.25, ttft_s=0.25, tokens=40), made(0.0, tpot_s=0.25, ttft_s=0.25, tokens=20)]
    stage = stage_of(*two_at_once, full_until_s=5.0)
    assert stage_summary(stage, 40).output_tokens_per_s.value == pytest.approx(7.6, abs=0.4)
    assert stage_summary(stage, 40).window_s == 5.0


def test_tokens_without_text_count_by_the_engines_count() -> None:
    sample = made(0.0, ttft_s=0.1, tpot_s=0.1, tokens=50, counts={"completion_tokens": 100})
    assert throughput([sample], 0.0, 5.05).value == pytest.approx(100 / 5.05, rel=0.03)


def test_a_steady_stream_has_a_narrow_interval() -> None:
    estimate = throughput([made(0.0, ttft_s=0.005, tpot_s=0.01, tokens=1000)], 0.0, 10.0)
    assert estimate.value == pytest.approx(100.0, rel=0.01)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.high - estimate.low < 2.0


def test_goodput_counts_what_meets_every_limit() -> None:
    level = ServiceLevel(ttft_s=2.0, tpot_s=0.2)
    samples = [made(0.0), made(1.0, ttft_s=2.5), made(2.0, tpot_s=0.3), failed(3.0), made(4.0)]
    goodput = summary_of(*samples, level=level, full_until_s=10.0).goodput
    assert goodput is not None
    assert (goodput.good, goodput.n, goodput.requests_per_s) == (2, 5, pytest.approx(0.2))
    assert goodput.share == Estimate(0.4, pytest.approx(0.0527, abs=1e-3), pytest.approx(0.8534, abs=1e-3))
    assert goodput.service_level == "ttft <= 2 s, tpot <= 0.2 s"


def test_an_answer_of_one_token_cannot_miss_a_tpot() -> None:
    assert ServiceLevel(tpot_s=0.001).is_met_by(made(tokens=1))
    assert not ServiceLevel(e2e_s=0.001).is_met_by(made(tokens=1))


def test_time_in_the_line_is_the_nodes_own() -> None:
    summary = summary_of(made(was_queued=True, counts={"queue_ms": 250.0}), made())
    assert summary.queued == 1
    assert quantity_of(summary, "queue_ms").mean.value == 125.0


def test_the_most_cached_tokens_of_a_prompt_are_told() -> None:
    assert summary_of(made(counts={"cached_tokens": 3}), made(counts={"cached_tokens": 9})).cached_tokens == 9
    assert summary_of(made()).cached_tokens is None
    assert Counts().cached_tokens is None


def kept_up(until_s: float, pace_after_two_minutes: float) -> StageSummary:
    """A token each second, and after two minutes as many as that."""
    times = [float(i) for i in range(120)]
    while times[-1] < until_s:
        times.append(times[-1] + 1 / pace_after_two_minutes)
    counts = Counts(prompt_tokens=40, completion_tokens=len(times))
    sample = made(0.0, tokens_s=tuple(times), ended_s=times[-1])
    return summary_of(msgspec.structs.replace(sample, counts=counts), full_until_s=until_s)


def test_burst_and_sustained_are_told_apart() -> None:
    summary = kept_up(300.0, 0.5)
    assert summary.burst is not None
    assert summary.sustained is not None
    assert summary.burst.value == pytest.approx(1.0, abs=0.05)
    assert summary.sustained.value == pytest.approx(0.5, abs=0.05)
    assert 0.5 < summary.output_tokens_per_s.value < 1.0


def test_a_load_that_was_short_has_no_sustained_figure() -> None:
    short, shorter = kept_up(170.0, 1.0), summary_of(made(0.0), made(2.0))
    assert short.burst is not None
    assert short.sustained is None
    assert (shorter.burst, shorter.sustained) == (None, None)


def test_people_are_told_how_much_of_the_burst_is_sustained() -> None:
    stage = stage_of(made(0.0, ttft_s=0.5, tpot_s=1.0, tokens=300), full_until_s=299.0)
    (line,) = [line for line in table(outcome(run_of(stage))).splitlines() if "burst" in line]
    assert "burst 1.00" in line
    assert "sustained 1.0" in line
    assert "after 2 minutes" in line
