"""What a benchmark runs, and in which order. Pure: settings, runs and prompts from values; no engine, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from appliance.protocol import LoadOptions

DIGITS = 8
STRIDE = 61_803_399  # coprime with 10^8, so no number comes twice; far from round, so neighbours differ at once


@dataclass(frozen=True)
class Run:
    """One generation to measure; `number` counts from 1 in the order of execution, warm-ups too."""

    number: int
    options: LoadOptions
    is_warm_up: bool


def settings(context_sizes: Sequence[int], threads: Sequence[int], batch_sizes: Sequence[int]) -> list[LoadOptions]:
    """Every combination, the first list varying slowest."""
    return [LoadOptions(*combination) for combination in product(context_sizes, threads, batch_sizes)]


def schedule(settings: Sequence[LoadOptions], runs: int) -> list[Run]:
    """The order of the runs: interleaved as far as reloads allow.

    Every change of a setting reloads the model, which costs seconds, so runs come in blocks, one setting a block:

    1. First half of the runs of each setting (the larger one when `runs` is odd), in the order given.
    2. The other half in the opposite order: A A B B | B B A A. What drifts steadily meanwhile, such as the
       temperature, then weighs alike on all settings; and the setting at the turn stays loaded.
    3. After each load, one run more to warm up: caches and buffers are cold, and the load itself is in its TTFT.

    With a single run a setting there is one block each, and drift cannot be told from the setting's effect.
    """
    second_half = runs // 2
    blocks = [(options, runs - second_half) for options in settings]
    blocks += [(options, second_half) for options in reversed(settings) if second_half]
    order: list[tuple[LoadOptions, bool]] = []
    loaded = None
    for options, count in blocks:
        if options != loaded:
            order.append((options, True))
            loaded = options
        order += [(options, False)] * count
    return [Run(number, options, is_warm_up) for number, (options, is_warm_up) in enumerate(order, 1)]


def unique_words(seed: int, run_number: int) -> str:
    """The beginning of one run's prompt, such as "Run 48213907: ", unlike that of every other run with this seed.

    The engine keeps the prompts it has read, so a prompt that begins like an earlier one costs no prefill. Always as
    many digits, so that all runs have about as many tokens.
    """
    return f"Run {(seed + run_number * STRIDE) % 10**DIGITS:0{DIGITS}d}: "
