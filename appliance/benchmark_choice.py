"""Which setting a benchmark recommends, and how sure that is. Pure; statistics over the samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple, Protocol

import msgspec

from appliance.benchmark_report import Environment, Recommended, RequestDefaults, Sample, Setting, rounded

NOISE_FLOOR = 0.02  # runs of one load share its place in memory, so their spread understates the noise
SINGLE_RUN_FLOOR = 0.10  # without repetition there is no spread to judge by
SIGNIFICANCE = 0.05
ANSWER_TIME_S = 30  # as long as people wait for an answer that they see growing
MAX_TOKENS_STEP = 8
MAX_TOKENS_LEAST, MAX_TOKENS_MOST = 16, 2048


class Timed(Protocol):
    """What the length of an answer is reckoned from; see Sample, which is one."""

    @property
    def setting(self) -> Setting: ...
    @property
    def warm_up(self) -> bool: ...
    @property
    def streams(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def ttft_ms(self) -> float: ...
    @property
    def decode_tokens_per_second(self) -> float | None: ...


class Choice(msgspec.Struct, frozen=True):
    """The setting that is recommended; `reason` is one sentence, without its full stop."""

    setting: Setting
    reason: str


def choose(samples: Sequence[Sample]) -> Choice:
    """The setting with the highest decode throughput, or the most useful of those that the data cannot tell from it.

    1. Settings are compared by the logarithms of their runs' decode tokens/s, so that differences are shares.
    2. The spread of all runs around their own setting's mean, pooled, is the noise s of one run, with (runs - settings)
       degrees of freedom: a setting's own two runs would say next to nothing about it.
    3. A setting differs from the fastest when Student's two-sample t = d / (s * sqrt(1/n1 + 1/n2)) has a two-sided p
       below SIGNIFICANCE divided by the number of comparisons (Bonferroni), and d is NOISE_FLOOR or more.
    4. Where no setting has two runs there is no s: it differs when d is SINGLE_RUN_FLOOR or more.
    5. Among the settings that do not differ from the fastest: the larger context, then fewer threads, then the
       smaller batch.
    A setting of which no run made two tokens has no throughput and is not chosen, unless all are so.
    """
    rates = decode_rates(samples)
    if not rates:
        settings = {sample.setting for sample in samples}
        return Choice(min(settings, key=_preference), "No run made two tokens, so no throughput could be measured")
    logs = {setting: [math.log(rate) for rate in of] for setting, of in rates.items()}
    fastest = max(logs, key=lambda setting: fmean(logs[setting]))
    noise = _Noise.of(logs)
    tied = [setting for setting in logs if not _differ(logs[fastest], logs[setting], noise, comparisons=len(logs) - 1)]
    chosen = min(tied, key=_preference)
    return Choice(chosen, _reason(rates, fastest, tied, chosen, noise))


def decode_rates(samples: Iterable[Sample]) -> dict[Setting, list[float]]:
    """The decode tokens/s of the measured runs, by setting."""
    rates: dict[Setting, list[float]] = {}
    for sample in samples:
        if not sample.warm_up and sample.decode_tokens_per_second:
            rates.setdefault(sample.setting, []).append(sample.decode_tokens_per_second)
    return rates


def best_so_far(samples: Iterable[Sample]) -> dict[str, Any] | None:
    """The setting with the highest mean of the runs until now, and that mean; nothing is sure of it yet."""
    means = {setting: fmean(rates) for setting, rates in decode_rates(samples).items()}
    if not means:
        return None
    best = max(means, key=lambda setting: means[setting])
    return {**msgspec.structs.asdict(best), "decode_tokens_per_second": rounded(means[best])}


def p_value(t: float, degrees: int) -> float:
    """The probability that Student's t is at least as far from 0, on either side, by chance.

    The exact finite series for a whole number of degrees of freedom: Abramowitz & Stegun, Handbook of Mathematical
    Functions, 26.7.3 and 26.7.4.
    """
    theta = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    is_odd = degrees % 2 == 1
    total, term = 0.0, cosine if is_odd else 1.0
    for k in range(2 if is_odd else 1, degrees, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    within = 2 / math.pi * (theta + sine * total) if is_odd else sine * total
    return max(0.0, 1.0 - within)


def tokens_in_time(samples: Iterable[Timed], setting: Setting) -> float | None:
    """How many tokens the slowest measured run of this setting made in ANSWER_TIME_S, had it gone on so long.

    Its TTFT first, then its decode throughput for the rest of the time. None where no run made two tokens.
    """
    in_time = [
        sample.decode_tokens_per_second / sample.streams * max(0.0, ANSWER_TIME_S - sample.ttft_ms / 1000)
        for sample in samples
        if sample.setting == setting and not sample.warm_up and sample.decode_tokens_per_second
    ]
    return min(in_time, default=None)


def max_tokens(samples: Sequence[Timed], setting: Setting) -> int:
    """The default length of an answer at this setting.

    1. As many tokens as stay under ANSWER_TIME_S, by `tokens_in_time`.
    2. At most half of the context, and no more than the measured prompt leaves: prompt and answer share it.
    3. A multiple of MAX_TOKENS_STEP, from MAX_TOKENS_LEAST (less is no answer, however slow the node) to
       MAX_TOKENS_MOST (what a request may ask for). The least context is 128, so it is always below the context.
    """
    in_time = tokens_in_time(samples, setting) or 0.0
    prompt_tokens = max(sample.prompt_tokens for sample in samples if sample.setting == setting)
    room = min(setting.context_size // 2, setting.context_size - prompt_tokens)
    tokens = min(int(in_time), room, MAX_TOKENS_MOST) // MAX_TOKENS_STEP * MAX_TOKENS_STEP
    return max(MAX_TOKENS_LEAST, tokens)


def recommend(samples: Sequence[Sample], keep_alive: str) -> Recommended:
    """The profile that the samples speak for; `keep_alive` is the node's own, which no benchmark measures."""
    choice = choose(samples)
    setting, tokens = choice.setting, max_tokens(samples, choice.setting)
    return Recommended(
        Environment(setting.context_size, tokens, setting.threads, setting.batch_size, keep_alive),
        RequestDefaults(tokens),
        f"{choice.reason}; {_promise(tokens, tokens_in_time(samples, setting))}.",
    )


class _Noise(NamedTuple):
    """Decision 2 of `choose`: the standard deviation of one run's logarithm, and the degrees of freedom it rests on."""

    deviation: float
    degrees: int

    @classmethod
    def of(cls, logs: dict[Setting, list[float]]) -> _Noise:
        degrees = sum(len(values) - 1 for values in logs.values())
        squares = sum((value - fmean(values)) ** 2 for values in logs.values() for value in values)
        return cls(math.sqrt(squares / degrees) if degrees else 0.0, degrees)


def _differ(fastest: list[float], other: list[float], noise: _Noise, comparisons: int) -> bool:
    """Decisions 3 and 4 of `choose`."""
    distance = fmean(fastest) - fmean(other)
    if distance <= 0 or distance < -math.log(1 - (NOISE_FLOOR if noise.degrees else SINGLE_RUN_FLOOR)):
        return False
    if noise.deviation == 0:
        return True
    error = noise.deviation * math.sqrt(1 / len(fastest) + 1 / len(other))
    return p_value(distance / error, noise.degrees) < SIGNIFICANCE / comparisons


def _preference(setting: Setting) -> tuple[int, int, int]:
    return -setting.context_size, setting.threads, setting.batch_size


def _reason(
    rates: dict[Setting, list[float]], fastest: Setting, tied: list[Setting], chosen: Setting, noise: _Noise
) -> str:
    """One sentence, without its full stop: what was measured, and how sure it is."""
    measured = f"{chosen} decoded {_figure(rates[chosen])}"
    if len(rates) == 1:
        return f"{measured}; no other setting was measured, so there was nothing to choose from"
    how_sure = (
        f"runs of one setting scattered by {noise.deviation:.1%}, and differences of less than {NOISE_FLOOR:.0%} or "
        f"with p above {SIGNIFICANCE} (t test, corrected for {_count(len(rates) - 1, 'comparison')}) count as none"
        if noise.degrees
        else f"one run a setting shows no spread, so differences of less than {SINGLE_RUN_FLOOR:.0%} count as none"
    )
    if len(tied) == 1:
        others = {setting: fmean(of) for setting, of in rates.items() if setting != chosen}
        second = max(others, key=lambda setting: others[setting])
        lead = fmean(rates[chosen]) / others[second] - 1
        return f"{measured}, {lead:.1%} more than the next of {len(rates)} settings ({second}); {how_sure}"
    same = (
        f"the {len(rates)} settings" if len(tied) == len(rates) else f"the fastest {len(tied)} of {len(rates)} settings"
    )
    speed = "" if chosen == fastest else f" ({fastest} decoded {_figure(rates[fastest])})"
    return (
        f"{measured}; {same} cannot be told apart{speed}, so the larger context, then fewer threads, then the smaller "
        f"batch decided; {how_sure}"
    )


def _promise(tokens: int, in_time: float | None) -> str:
    if in_time is None:
        return f"MAX_TOKENS={tokens} is the least there is"
    if tokens > in_time:
        return f"MAX_TOKENS={tokens} is the least there is and takes longer than {ANSWER_TIME_S} s"
    return (
        f"MAX_TOKENS={tokens} keeps a default answer to such a prompt under {ANSWER_TIME_S} s, with nothing beside it"
    )


def _figure(rates: list[float]) -> str:
    if len(rates) == 1:
        return f"{rates[0]:.2f} tokens/s in one run"
    return f"{median(rates):.2f} tokens/s (median of {len(rates)} runs, {min(rates):.2f} to {max(rates):.2f})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
