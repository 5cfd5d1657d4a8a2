"""From a race's outcome to the profile that may be written, and why it may not. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from appliance import benchmark_choice
from bench.inventory.tuned_profile import Against, Measured, Provenance, TunedProfile
from bench.knobs import KNOBS
from bench.statistics.intervals import mean_interval
from bench.tuning.block import Ran
from bench.tuning.objective import Figures, Limits, Objective
from bench.tuning.outcome import MARGIN, USUAL_S, Outcome, Plan, usual_blocks
from bench.tuning.space import Axis, Settings, Space, Value
from bench.tuning.tune_file import TuneRun

N_CTX = (512, 1024, 2048, 4096)
N_BATCH = (64, 128, 256, 512)
THREAD_SHARES = (0.5, 0.75, 1.0)  # of the cores: 2, 3 and 4 on a Pi
SLOTS = (1, 2, 4)
FLASH_ATTENTION, KV_CACHE = ("auto", "off"), ("f16", "q8_0")
LEAST_BLOCKS = 2


@dataclass(frozen=True)
class Wanted:
    """What is to be tuned for, of all nodes alike. Values: None is what suits the node.

    headroom_mib: memory that is to stay free. budget_s: None is the usual one (`usual_blocks`, USUAL_S).
    """

    objective: Objective = "throughput"
    min_ctx: int | None = None
    max_ttft_ms: float | None = None
    headroom_mib: float = 512.0
    budget_s: float | None = None
    margin: float = MARGIN
    n_ctx: tuple[int, ...] | None = None
    n_threads: tuple[int, ...] | None = None
    n_batch: tuple[int, ...] | None = None
    slots: tuple[int, ...] | None = None
    with_restarts: bool = False
    seed: int = 0


def plan(wanted: Wanted, node: Mapping[str, Any] | None, own: Mapping[str, Value]) -> Plan:
    """A node's race: over what suits it, and what it has now.

    node: GET /node, where it has that. own: its settings, by their names in a profile.
    1. Contexts that the model was not trained for are left out, also of those that are wanted. Threads that are wanted
       are taken as they are, be they more than cores; else they are shares of the cores.
    2. What the node has is always one of the settings: it is what others must beat.
    3. A quantized KV cache without flash attention is none.
    """
    cores, trained = _at(node, "board", "cores"), _at(node, "model", "trained_context")
    threads = wanted.n_threads or tuple(max(1, math.floor(cores * share)) for share in THREAD_SHARES if cores)
    contexts = tuple(size for size in wanted.n_ctx or N_CTX if not trained or size <= trained)
    values: dict[str, tuple[Sequence[Value], bool]] = {
        "N_CTX": (contexts, False),
        "N_THREADS": (threads, False),
        "N_BATCH": (wanted.n_batch or N_BATCH, False),
    }
    if wanted.with_restarts:
        values["MAX_CONCURRENT_REQUESTS"] = (wanted.slots or SLOTS, True)
        values["OLLAMA_FLASH_ATTENTION"] = (FLASH_ATTENTION, True)
        values["OLLAMA_KV_CACHE_TYPE"] = (KV_CACHE, True)
    default = Settings(tuple((name, own.get(name, KNOBS[name].default)) for name in values))
    axes = tuple(
        Axis(name, _with(default.env[name], some), needs_restart) for name, (some, needs_restart) in values.items()
    )
    every = Space(axes).settings
    impossible = frozenset(s for s in every if s != default and _is_impossible(s.env))
    total_mib = _at(node, "memory", "total_mib")
    most_mib = None if total_mib is None else total_mib - wanted.headroom_mib
    limits = Limits(wanted.min_ctx, wanted.max_ttft_ms, most_mib)
    space = Space(axes, impossible)
    most_blocks = None if wanted.budget_s else usual_blocks(sum(map(limits.admits, space.settings)))
    budget_s = wanted.budget_s or USUAL_S
    return Plan(space, default, wanted.objective, limits, budget_s, most_blocks, wanted.margin, wanted.seed)


def profile(run: TuneRun, at: datetime | None = None) -> TunedProfile | None:
    """The winner as a profile; None where there is none. What the previous profile sets besides stays set."""
    outcome = run.outcome
    if outcome is None or outcome.winner is None:
        return None
    winner = outcome.winner.settings
    counted = [record for record in run.blocks if record.settings == winner and record.status == "measured"]
    ran = [one for record in counted for one in record.samples]
    env = {**run.own_env, **winner.env}
    if tokens := max_tokens(ran):
        env["MAX_TOKENS"] = tokens
    when = (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return TunedProfile(
        env={name: env[name] for name in KNOBS if name in env},
        measured=measured(run, outcome),
        provenance=Provenance.of(run.id, when, run.before.node if run.before else None),
    )


def why_not(run: TuneRun) -> str:
    """Why a tune is no reason to write a profile; nothing where it is one.

    There is no winner, or it is what the node has, or the race is not sure that it is better.
    """
    outcome = run.outcome
    if outcome is None or outcome.winner is None:
        return "no settings could be measured within the limits"
    if outcome.winner.settings == outcome.default.settings:
        return "the node's own settings are the best that was found"
    if not outcome.is_better:
        return (
            f"{outcome.winner.settings} is not surely better than what the node has: the blocks of the two are too "
            "few, or scatter too much. A larger --budget may tell; is the machine busy?"
        )
    return ""


def measured(run: TuneRun, outcome: Outcome) -> dict[str, Measured]:
    """The winner's figures, and what they were measured against. Nothing where a single block knows no interval."""
    assert outcome.winner is not None
    figures, before = (figures_of(run, settings) for settings in (outcome.winner.settings, outcome.default.settings))
    if len(figures) < LEAST_BLOCKS:
        return {}
    rates = [one.decode_tokens_per_s for one in figures]
    own = median(one.decode_tokens_per_s for one in before) if before else None
    is_change = run.plan.objective == "throughput"  # of this very figure
    against = Against(
        settings=str(outcome.default.settings),
        median=own,
        change=outcome.gain if is_change else None,
        ci95=outcome.gain_ci95 if is_change else None,
        n=len(before),
    )
    is_against = outcome.winner.settings != outcome.default.settings and before
    return {
        "decode_tokens_per_s": metric(rates, against if is_against else None),
        "ttft_ms": metric([one.ttft_ms for one in figures]),
    }


def figures_of(run: TuneRun, settings: Settings) -> list[Figures]:
    return [record.figures for record in run.blocks if record.settings == settings and record.figures]


def metric(values: Sequence[float], against: Against | None = None) -> Measured:
    """Median, interval and n of at least two values above 0: Student's t on logarithms, since few values set no bound
    by their order alone."""
    interval = mean_interval([math.log(value) for value in values])
    assert interval.low is not None
    assert interval.high is not None
    middle = median(values)
    ci95 = min(middle, math.exp(interval.low)), max(middle, math.exp(interval.high))
    return Measured(median=middle, ci95=ci95, n=len(values), against=against)


def max_tokens(ran: Sequence[Ran]) -> int | None:
    """The default length of an answer at these settings, by the appliance's own rule (benchmark_choice.max_tokens)."""
    alike = [one for one in ran if one.decode_tokens_per_second]
    return benchmark_choice.max_tokens(alike, alike[0].setting) if alike else None


def _with(own: Value, values: Sequence[Value]) -> tuple[Value, ...]:
    every = dict.fromkeys((*values, own))
    if all(isinstance(value, int) for value in every):
        return tuple(sorted(every, key=int))
    return tuple(every)


def _is_impossible(env: Mapping[str, Value]) -> bool:
    return env.get("OLLAMA_KV_CACHE_TYPE", "f16") != "f16" and env.get("OLLAMA_FLASH_ATTENTION") == "off"


def _at(node: Mapping[str, Any] | None, *path: str) -> Any:
    found: Any = node
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
