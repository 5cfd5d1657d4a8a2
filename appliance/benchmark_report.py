"""What the runs of a benchmark say: samples and their statistics. Pure; no engine, no clock.

The shapes are those of the answer to POST /benchmark, under its names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median, stdev
from typing import NamedTuple

import msgspec

from appliance.protocol import LoadOptions, Record


class Setting(msgspec.Struct, frozen=True):
    """The load-time options of a run."""

    context_size: int
    threads: int
    batch_size: int

    @classmethod
    def of(cls, options: LoadOptions) -> Setting:
        return cls(options.num_ctx, options.num_thread, options.num_batch)

    def __str__(self) -> str:
        return f"N_CTX={self.context_size}, N_THREADS={self.threads}, N_BATCH={self.batch_size}"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Latency and TTFT are measured on the stream; tokens and the speeds are by the engine's own counts.

    Of several streams at once: latency is the longest, TTFT and prefill are the median; tokens and their rates are of
    all together, decode counted from the first token of any to the end of the last.

    completion_tokens_per_second: tokens by the whole latency, prefill included: what a client gets.
    tpot_ms: time per output token of one stream, the mean of all. memory_mib: what the engine holds for this setting.
    prefill_tokens_per_second: the prompt's tokens, without those the engine says it had cached, by prefill time.
    decode_tokens_per_second: llama.cpp counts n tokens and the time from the first to the last, so (n - 1) by time.
    """

    run: int
    context_size: int
    threads: int
    batch_size: int
    warm_up: bool
    latency_ms: float
    ttft_ms: float
    load_ms: float
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    finish_reason: str
    completion_tokens_per_second: float
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    streams: int = 1
    tpot_ms: float | None = None
    memory_mib: float | None = None

    @property
    def setting(self) -> Setting:
        return Setting(self.context_size, self.threads, self.batch_size)


class Spread(msgspec.Struct, frozen=True):
    """One quantity over a setting's measured runs; `stdev` is the sample's (n - 1), None of a single run."""

    n: int
    median: float
    min: float
    max: float
    stdev: float | None


class Percentiles(msgspec.Struct, frozen=True):
    p50: float
    p95: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One setting, measured: the mean of its runs, as in the first contract, and their spread.

    load_ms: the longest of its loads; next to nothing where it was loaded already and never left memory.
    """

    context_size: int
    threads: int
    batch_size: int
    runs: int
    avg_latency_ms: float
    avg_ttft_ms: float
    avg_completion_tokens: float
    avg_completion_tokens_per_second: float
    completion_tokens_per_second: Spread
    prefill_tokens_per_second: Spread | None
    decode_tokens_per_second: Spread | None
    ttft_ms: Percentiles
    load_ms: float


class Environment(msgspec.Struct, frozen=True):
    N_CTX: int
    MAX_TOKENS: int
    N_THREADS: int
    N_BATCH: int
    OLLAMA_KEEP_ALIVE: str


class RequestDefaults(msgspec.Struct, frozen=True):
    max_tokens: int
    stream: bool = True


class Recommended(msgspec.Struct, frozen=True):
    env: Environment
    request_defaults: RequestDefaults
    reason: str


class BenchmarkAnswer(msgspec.Struct, frozen=True):
    """The answer to POST /benchmark."""

    model: str
    runs: int
    prompt_chars: int
    profiles: list[Profile]
    recommended: Recommended
    samples: list[Sample]


class Told(NamedTuple):
    """One stream of a run: the engine's last record, and when its first token and its end came, in seconds from the
    sending; without any text the first token was the end's."""

    last: Record
    first_s: float
    ended_s: float


def sample(
    run_number: int, options: LoadOptions, is_warm_up: bool, told: Sequence[Told], memory_mib: float | None = None
) -> Sample:
    """One run, of one stream or of several that ran at once."""
    tokens = sum(one.last.eval_count for one in told)
    latency_s, ttft_s = max(one.ended_s for one in told), median(one.first_s for one in told)
    cached = [one.last.prompt_eval_cached_count for one in told]
    prefill = [rate for one in told if (rate := _prefill_rate(one.last)) is not None]
    tpots = [1000 / rate for one in told if (rate := _decode_rate(one.last)) is not None]
    window_s = latency_s - min(one.first_s for one in told)
    together = rounded((tokens - len(told)) / window_s) if tokens > len(told) and window_s > 0 else None
    last = told[-1].last
    return Sample(
        run=run_number,
        context_size=options.num_ctx,
        threads=options.num_thread,
        batch_size=options.num_batch,
        warm_up=is_warm_up,
        latency_ms=rounded(latency_s * 1000),
        ttft_ms=rounded(ttft_s * 1000),
        load_ms=rounded(max(one.last.load_duration for one in told) / 1e6),
        prompt_tokens=max(one.last.prompt_eval_count for one in told),
        cached_tokens=None if None in cached else max(count for count in cached if count is not None),
        completion_tokens=tokens,
        finish_reason=last.done_reason or "stop",
        completion_tokens_per_second=rounded(tokens / latency_s) if latency_s > 0 else 0.0,
        prefill_tokens_per_second=rounded(median(prefill)) if prefill else None,
        decode_tokens_per_second=_decode_rate(last) if len(told) == 1 else together,
        streams=len(told),
        tpot_ms=rounded(fmean(tpots)) if tpots else None,
        memory_mib=memory_mib,
    )


def _prefill_rate(last: Record) -> float | None:
    return _rate(last.prompt_eval_count - (last.prompt_eval_cached_count or 0), last.prompt_eval_duration)


def _decode_rate(last: Record) -> float | None:
    return _rate(last.eval_count - 1, last.eval_duration)


def profile(samples: Sequence[Sample]) -> Profile:
    """One setting's figures from all its samples, in any order; warm-ups give only the load time."""
    measured = [sample for sample in samples if not sample.warm_up]
    loads = [sample.load_ms for sample in samples if sample.warm_up]
    ttfts = [sample.ttft_ms for sample in measured]
    setting = samples[0].setting
    completion = spread(sample.completion_tokens_per_second for sample in measured)
    assert completion is not None
    return Profile(
        context_size=setting.context_size,
        threads=setting.threads,
        batch_size=setting.batch_size,
        runs=len(measured),
        avg_latency_ms=rounded(fmean(sample.latency_ms for sample in measured)),
        avg_ttft_ms=rounded(fmean(ttfts)),
        avg_completion_tokens=rounded(fmean(sample.completion_tokens for sample in measured)),
        avg_completion_tokens_per_second=rounded(fmean(sample.completion_tokens_per_second for sample in measured)),
        completion_tokens_per_second=completion,
        prefill_tokens_per_second=spread(sample.prefill_tokens_per_second for sample in measured),
        decode_tokens_per_second=spread(sample.decode_tokens_per_second for sample in measured),
        ttft_ms=Percentiles(rounded(percentile(ttfts, 0.5)), rounded(percentile(ttfts, 0.95))),
        load_ms=rounded(max(loads)),
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """The values that there are, summed up; None where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = rounded(stdev(known)) if len(known) > 1 else None
    return Spread(len(known), rounded(median(known)), min(known), max(known), deviation)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, linear between neighbours.

    Definition 7 of Hyndman & Fan, "Sample Quantiles in Statistical Packages" (1996), which numpy has by default.
    """
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def remaining_s(samples: Sequence[Sample], warm_ups_left: int, runs_left: int) -> float | None:
    """Estimated seconds of the runs that are left; None until a warm-up and a measured run have shown their time."""
    warm = [sample.latency_ms / 1000 for sample in samples if sample.warm_up]
    measured = [sample.latency_ms / 1000 for sample in samples if not sample.warm_up]
    if not warm or not measured:
        return None
    return fmean(warm) * warm_ups_left + fmean(measured) * runs_left


def _rate(tokens: int, duration_ns: int) -> float | None:
    return rounded(tokens / duration_ns * 1e9) if tokens > 0 and duration_ns > 0 else None


def rounded(value: float) -> float:
    """Six significant digits: two decimals would be coarse for a node that makes a token in three seconds."""
    return float(f"{value:.6g}")
