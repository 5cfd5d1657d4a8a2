"""A stage's figures from its samples, each with n and how sure it is. Pure.

TTFT is first token - planned sending, E2E `done` - planned sending, TPOT (last token - first token) / (n - 1), ITL the
gap between two token events. Warm-up requests are counted and in no other figure, but that tokens which they still
produce while others are measured are output of the node all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

import msgspec

from bench.running.samples import Load, Sample, Stage
from bench.statistics.intervals import Interval, mean_interval, quantile, quantile_interval, rate_interval

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
THROUGHPUT_SLICES = 20
BURST_S = 30.0  # a board of the size of a Pi begins to slow down later than that
SUSTAINED_AFTER_S = 120.0  # by then it is about as hot as it gets with a heat sink; a bare one takes longer
SUSTAINED_LEAST_S = 60.0
MS = 1000.0


class Estimate(msgspec.Struct, frozen=True):
    """A figure and its 95 % confidence interval; None where the data set no bound."""

    value: float
    low: float | None
    high: float | None


class Quantity(msgspec.Struct, frozen=True):
    """One quantity over the measured requests that have it."""

    n: int
    mean: Estimate
    p50: Estimate
    p90: Estimate
    p95: Estimate
    p99: Estimate


class ServiceLevel(msgspec.Struct, frozen=True):
    """A service level: what a request may take at most, in seconds. None is no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def is_met_by(self, sample: Sample) -> bool:
        """A request that failed meets none; one of a single token has no TPOT to fail by."""
        if sample.ttft_s is None or sample.e2e_s is None:
            return False
        limits = (self.ttft_s, sample.ttft_s), (self.tpot_s, sample.tpot_s), (self.e2e_s, sample.e2e_s)
        return all(limit is None or taken is None or taken <= limit for limit, taken in limits)

    def __str__(self) -> str:
        named = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}
        return ", ".join(f"{name} <= {limit:g} s" for name, limit in named.items() if limit is not None)


class Goodput(msgspec.Struct, frozen=True):
    """Requests within the service level: as a share of all that were measured, failures too, and per second."""

    service_level: str
    good: int
    n: int
    share: Estimate
    requests_per_s: float


class StageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One load's figures.

    window_s: how long the load was full: from the first measured request's planned time until no further was to come;
      all rates are of this time, so that a loop's running out does not thin them.
    ended_early: answers shorter than max_tokens.
    burst, sustained: output_tokens_per_s of the beginning and of what comes after; see `burst_and_sustained`.
    """

    load: Load
    warm_ups: int
    requests: int
    answered: int
    failures: dict[str, int]
    ended_early: int
    queued: int
    window_s: float
    requests_per_s: float
    output_tokens_per_s: Estimate
    burst: Estimate | None
    sustained: Estimate | None
    prompt_tokens: float | None
    completion_tokens: float | None
    cached_tokens: int | None
    quantities: dict[str, Quantity | None]
    goodput: Goodput | None


def stage_summary(stage: Stage, max_tokens: int, service_level: ServiceLevel | None = None) -> StageSummary:
    """The figures of a stage with at least one measured sample."""
    measured = sorted(stage.measured, key=lambda sample: sample.planned_s)
    answered = [sample for sample in measured if sample.counts and not sample.failure]
    begin, end = window(stage)
    burst, sustained = burst_and_sustained(stage.samples, begin, end)
    cached = [s.counts.cached_tokens for s in answered if s.counts and s.counts.cached_tokens is not None]
    return StageSummary(
        load=stage.load,
        warm_ups=len(stage.samples) - len(measured),
        requests=len(measured),
        answered=len(answered),
        failures=dict(Counter(str(sample.failure) for sample in measured if sample.failure)),
        ended_early=sum(1 for s in answered if s.counts and s.counts.completion_tokens < max_tokens),
        queued=sum(1 for sample in measured if sample.was_queued),
        window_s=end - begin,
        requests_per_s=sum(1 for s in stage.samples if s.counts and begin <= s.ended_s <= end) / (end - begin),
        output_tokens_per_s=throughput(stage.samples, begin, end),
        burst=burst,
        sustained=sustained,
        prompt_tokens=_mean(s.counts.prompt_tokens for s in answered if s.counts),
        completion_tokens=_mean(s.counts.completion_tokens for s in answered if s.counts),
        cached_tokens=max(cached, default=None),
        quantities=_quantities(answered),
        goodput=goodput(measured, service_level, end - begin) if service_level else None,
    )


def window(stage: Stage) -> tuple[float, float]:
    """When the load was full, in the run's seconds; the whole stage where it never was for a moment."""
    begin = min(sample.planned_s for sample in stage.measured)
    last = max(sample.ended_s for sample in stage.samples)
    end = stage.full_until_s if stage.full_until_s is not None and stage.full_until_s > begin else last
    return begin, max(end, begin + 1e-6)


def throughput(samples: Iterable[Sample], begin: float, end: float) -> Estimate:
    """Output tokens/s of the whole node in this window, and how sure, from the rates of equal slices of it.

    A token event counts as many tokens as its answer had on each of its events, by the engine's count.
    """
    slices = [0.0] * THROUGHPUT_SLICES
    width = (end - begin) / THROUGHPUT_SLICES
    for sample in samples:
        if not sample.tokens_s:
            continue
        weight = sample.counts.completion_tokens / len(sample.tokens_s) if sample.counts else 1.0
        for at in sample.tokens_s:
            if begin <= at < end:
                slices[min(int((at - begin) / width), THROUGHPUT_SLICES - 1)] += weight / width
    interval = mean_interval(slices)
    return Estimate(fmean(slices), None if interval.low is None else max(0.0, interval.low), interval.high)


def burst_and_sustained(samples: Sequence[Sample], begin: float, end: float) -> tuple[Estimate | None, Estimate | None]:
    """What a node makes while it is still cool, and what it goes on making: two figures, never averaged.

    1. Burst: the first BURST_S of the window; None where that is shorter. The board was cool when the stage began, as
    far as `--cool-to` could see to that. 2. Sustained: the window from SUSTAINED_AFTER_S on; None where less than
    SUSTAINED_LEAST_S are left: a short load shows no steady state, and nothing stands for it.
    """
    burst = throughput(samples, begin, begin + BURST_S) if end - begin >= BURST_S else None
    steady = begin + SUSTAINED_AFTER_S
    return burst, throughput(samples, steady, end) if end - steady >= SUSTAINED_LEAST_S else None


def goodput(measured: Sequence[Sample], service_level: ServiceLevel, window_s: float) -> Goodput:
    good = sum(1 for sample in measured if service_level.is_met_by(sample))
    share = _estimate(good / len(measured), rate_interval(good, len(measured)))
    return Goodput(str(service_level), good, len(measured), share, good / window_s)


def quantity(values: Sequence[float]) -> Quantity | None:
    """All figures of values in the order of time; None of none."""
    if not values:
        return None
    shares = {n: _estimate(quantile(values, q), quantile_interval(values, q)) for n, q in PERCENTILES.items()}
    return Quantity(len(values), _estimate(fmean(values), mean_interval(values)), **shares)


def _quantities(answered: Sequence[Sample]) -> dict[str, Quantity | None]:
    values: dict[str, Iterable[float | None]] = {
        "ttft_ms": (_times(sample.ttft_s, MS) for sample in answered),
        "tpot_ms": (_times(sample.tpot_s, MS) for sample in answered),
        "itl_ms": (gap * MS for sample in answered for gap in sample.itl_s),
        "e2e_ms": (_times(sample.e2e_s, MS) for sample in answered),
        "queue_ms": (_times(sample.queue_s, MS) for sample in answered),
        "prefill_tokens_per_s": (sample.prefill_tokens_per_s for sample in answered),
        "decode_tokens_per_s": (sample.decode_tokens_per_s for sample in answered),
    }
    return {name: quantity([value for value in of if value is not None]) for name, of in values.items()}


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _estimate(value: float, interval: Interval) -> Estimate:
    return Estimate(value, interval.low, interval.high)


def _mean(values: Iterable[int]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
