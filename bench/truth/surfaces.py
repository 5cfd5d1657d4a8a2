"""Simulated machines: how fast each setting of a node truly is, and what a block of measuring it shows. Pure, seeded.

The costs are a Raspberry Pi 5's with a model of 3B, 4 bits: 5.3 tokens/s decode, 25 tokens/s prefill (published
measurements; see docs/tuning.md). The noise is harsher than an idle Pi's, whose runs repeat within a percent: heavy
tails, load effects, autocorrelation over a minute, a warming-up over ten, waves over minutes, and blocks that something
else on the machine slowed by up to 30 %.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from appliance.benchmark_run import WARM_UP_TOKENS
from bench.tuning.block import Question
from bench.tuning.objective import Figures
from bench.tuning.outcome import Block
from bench.tuning.space import Axis, Settings, Space

DECODE_TOKENS_PER_S, PREFILL_TOKENS_PER_S = 5.3, 25.0
LOAD_S = 6.0  # from the page cache, with repacking; an SD card takes 20 s
RESTART_S = 25.0  # the engine's and the appliance's, with the play that changes them
PROMPT_TOKENS, ANSWER_TOKENS = 80, Question().max_tokens  # a block's words with the chat template; its answer

LIVE = (Axis("N_CTX", (512, 1024, 2048, 4096)), Axis("N_THREADS", (2, 3, 4)), Axis("N_BATCH", (64, 128, 256, 512)))
RESTARTED = (
    Axis("MAX_CONCURRENT_REQUESTS", (1, 2, 4), needs_restart=True),
    Axis("OLLAMA_FLASH_ATTENTION", ("off", "on"), needs_restart=True),
    Axis("OLLAMA_KV_CACHE_TYPE", ("f16", "q8_0"), needs_restart=True),
)
LIVE_SPACE = Space(LIVE)
DEFAULT = Settings.of(N_CTX=512, N_THREADS=4, N_BATCH=512)
# A quantized cache needs flash attention: without it the engine does not start.
RESTART_SPACE = Space(
    LIVE + RESTARTED,
    frozenset(
        s
        for s in Space(LIVE + RESTARTED).settings
        if s.env["OLLAMA_FLASH_ATTENTION"] == "off" and s.env["OLLAMA_KV_CACHE_TYPE"] != "f16"
    ),
)
RESTART_DEFAULT = Settings.of(
    **DEFAULT.env, MAX_CONCURRENT_REQUESTS=4, OLLAMA_FLASH_ATTENTION="off", OLLAMA_KV_CACHE_TYPE="f16"
)

Surface = Callable[[Settings], float]


@dataclass(frozen=True)
class Noise:
    """Shares of a block's speed. `white` has Student's t with 4 degrees; `slow` is an Ornstein-Uhlenbeck process."""

    white: float = 0.012
    load: float = 0.006
    slow: float = 0.010
    slow_time_s: float = 60.0
    settling: float = 0.03
    settling_time_s: float = 300.0
    wave: float = 0.015
    wave_period_s: tuple[float, float] = (180.0, 900.0)
    disturbed: float = 0.04
    disturbance: tuple[float, float] = (0.05, 0.30)
    invalid: float = 0.02

    def scaled(self, by: float) -> Noise:
        """The same with more or less of everything but disturbances."""
        return replace(
            self,
            white=self.white * by,
            load=self.load * by,
            slow=self.slow * by,
            settling=self.settling * by,
            wave=self.wave * by,
        )


class Machine:
    """A node with a clock: each block takes its time and shows the surface through the noise."""

    def __init__(self, surface: Surface, noise: Noise, rng: random.Random) -> None:
        self.surface, self.noise, self.rng = surface, noise, rng
        self.now_s = 0.0
        self._slow, self._slow_at_s = rng.gauss(0, noise.slow), 0.0
        self._period_s, self._phase = rng.uniform(*noise.wave_period_s), rng.uniform(0, 2 * math.pi)
        self._group: object = None

    def block(self, settings: Settings, most_s: float | None = None) -> Block:
        """Load, warm up, measure one generation, load the node's own settings again; ended after `most_s` of it."""
        began_s = self.now_s
        env = settings.env
        group = tuple(env[axis.name] for axis in RESTARTED if axis.name in env)
        self.now_s += RESTART_S if self._group not in (None, group) else 0.0
        self._group = group
        ends_s = math.inf if most_s is None else self.now_s + most_s
        speed = self.surface(settings)
        decode, prefill = DECODE_TOKENS_PER_S * speed, PREFILL_TOKENS_PER_S * speed
        warm_s = self.now_s + LOAD_S + PROMPT_TOKENS / prefill + WARM_UP_TOKENS / decode
        self.now_s = min(warm_s, ends_s)
        factor = math.exp(self._log_noise())
        ttft_s, tpot_s = PROMPT_TOKENS / prefill / factor, 1 / decode / factor
        done_s = warm_s + ttft_s + (ANSWER_TOKENS - 1) * tpot_s
        self.now_s = min(done_s, ends_s) + LOAD_S
        cost_s = self.now_s - began_s
        if done_s > ends_s:
            return Block(settings, "failed", cost_s, reason="took too long")
        if self.rng.random() < self.noise.invalid:
            return Block(settings, "invalid", cost_s, reason="throttled")
        figures = Figures(1 / tpot_s, ttft_s * 1000, tpot_s * 1000, memory_mib(settings))
        return Block(settings, "measured", cost_s, figures)

    def _log_noise(self) -> float:
        noise, rng = self.noise, self.rng
        kept = math.exp(-(self.now_s - self._slow_at_s) / noise.slow_time_s)
        self._slow = self._slow * kept + rng.gauss(0, noise.slow) * math.sqrt(1 - kept * kept)
        self._slow_at_s = self.now_s
        settled = noise.settling * (1 - math.exp(-self.now_s / noise.settling_time_s))
        wave = noise.wave * math.sin(2 * math.pi * self.now_s / self._period_s + self._phase)
        white = noise.white * _heavy(rng) + rng.gauss(0, noise.load)
        disturbed = -math.log1p(-rng.uniform(*noise.disturbance)) if rng.random() < noise.disturbed else 0.0
        return self._slow - settled + wave + white - disturbed


def _heavy(rng: random.Random) -> float:
    """Student's t with 4 degrees of freedom, scaled to a deviation of 1."""
    chi_square = sum(rng.gauss(0, 1) ** 2 for _ in range(4))
    return rng.gauss(0, 1) / math.sqrt(chi_square / 4) / math.sqrt(2)


def memory_mib(settings: Settings) -> float:
    env = settings.env
    bytes_a_token = 36 if env.get("OLLAMA_KV_CACHE_TYPE", "f16") == "f16" else 19
    slots = env.get("MAX_CONCURRENT_REQUESTS", 1)
    return 2000 + int(env["N_CTX"]) * int(slots) * bytes_a_token / 1024 + int(env["N_BATCH"]) * 0.5


def _levels(settings: Settings) -> list[float]:
    """Where the settings lie on the axes that need no restart, each from 0 to 1."""
    env = settings.env
    return [axis.values.index(env[axis.name]) / (len(axis.values) - 1) for axis in LIVE]


def smooth(rng: random.Random) -> Surface:
    """One hill, anywhere; each axis from its best to its far end loses 5 to 60 %."""
    top = [rng.random() for _ in LIVE]
    steep = [rng.uniform(0.1, 0.8) for _ in LIVE]
    return lambda s: math.exp(-sum(k * (x - t) ** 2 for k, x, t in zip(steep, _levels(s), top, strict=True)))


def ridge(rng: random.Random) -> Surface:
    """Two axes only pay together: across the ridge it falls steeply, along it slowly."""
    one, other = rng.sample(range(3), 2)
    third = 3 - one - other
    top, tilt = rng.uniform(0, 1), rng.choice((-1, 1))
    across, along = rng.uniform(1.0, 3.0), rng.uniform(0.05, 0.4)
    steep, shift = rng.uniform(0.0, 0.3), rng.uniform(-0.2, 0.2)

    def speed(settings: Settings) -> float:
        x = _levels(settings)
        u, v = x[one], x[other] if tilt > 0 else 1 - x[other]
        return math.exp(-across * (u - v - shift) ** 2 - along * (u + v - 2 * top) ** 2 - steep * (x[third] - top) ** 2)

    return speed


def cliff(rng: random.Random) -> Surface:
    """A slope that rises up to an edge, behind which the machine swaps and loses 30 to 70 %."""
    slopes = [rng.uniform(0.05, 0.3) for _ in LIVE]
    edge, fall = rng.uniform(1.0, 2.4), rng.uniform(0.3, 0.7)
    return lambda s: (
        math.exp(sum(k * x for k, x in zip(slopes, _levels(s), strict=True)))
        / 1.3
        * (1 - fall if sum(_levels(s)) > edge else 1.0)
    )


def board(rng: random.Random) -> Surface:
    """What is expected of a Pi: threads saturate the memory, batches matter a little, the context not at all."""
    by_threads = {2: rng.uniform(0.75, 0.9), 3: rng.uniform(0.95, 1.02), 4: 1.0}
    by_batch = {64: rng.uniform(0.9, 1.0), 128: rng.uniform(0.96, 1.03), 256: rng.uniform(0.96, 1.03), 512: 1.0}
    return lambda s: by_threads[int(s.env["N_THREADS"])] * by_batch[int(s.env["N_BATCH"])]


SURFACES: Mapping[str, Callable[[random.Random], Surface]] = {
    "smooth": smooth,
    "ridge": ridge,
    "cliff": cliff,
    "board": board,
}


def with_restarts(rng: random.Random) -> Surface:
    """Any of the surfaces, times what slots, flash attention and a quantized cache change."""
    inner = SURFACES[rng.choice(sorted(SURFACES))](rng)
    gain, attention, cache = rng.uniform(0.0, 0.25), rng.uniform(-0.2, 0.1), rng.uniform(-0.1, 0.05)
    crowding = rng.uniform(0.0, 0.1)

    def speed(settings: Settings) -> float:
        env = settings.env
        slots = math.log2(int(env["MAX_CONCURRENT_REQUESTS"]))
        by_slots = slots * gain - slots * slots * crowding
        by_attention = attention if env["OLLAMA_FLASH_ATTENTION"] == "on" else 0.0
        by_cache = cache if env["OLLAMA_KV_CACHE_TYPE"] == "q8_0" else 0.0
        return inner(settings) * math.exp(by_slots + by_attention + by_cache)

    return speed
