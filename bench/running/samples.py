"""What a run measured: every sample, with settings, fingerprint and what speaks against the run. Shapes only.

These are also the shapes of the run file (bench/running/runfile.py). Times in a run are seconds from its beginning by
the monotonic clock, so a clock that is set while it runs changes none; `started_at` is the only one of the wall clock,
and only labels.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import field

from bench.running.header import Header
from bench.running.trace import Arrivals, Calibration, Part

KIND = "run"
UNTOLD = (
    1024  # prompts that may have been asked and are in no sample: under way, or not yet written, when it was killed
)


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request got no whole answer.

    kind: "status" and "event" are the node's own errors, before and in a stream, with its `code`; "refused",
    "unreachable", "cut_off", "timed_out" and "garbled" happened to the connection.
    """

    kind: Literal["status", "event", "refused", "unreachable", "cut_off", "timed_out", "garbled"]
    code: str = ""
    status: int | None = None
    detail: str = ""
    retry_after_s: float | None = None

    def __str__(self) -> str:
        parts = [str(self.status) if self.status else self.kind, self.code if self.kind in ("status", "event") else ""]
        return " ".join(part for part in parts if part)

    @property
    def is_answer(self) -> bool:
        """Whether the node itself said so; the others mean that it may be gone."""
        return self.kind in ("status", "event")


class Counts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The engine's own figures, from the `done` event; None where it gave none.

    cached_tokens: how many of the prompt's tokens it had read before; Ollama counts them in prompt_tokens, but not
    their time in prefill_ms.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    queue_ms: float = 0.0
    cached_tokens: int | None = None
    load_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. Every time is in seconds from the run's beginning, taken when bytes arrived.

    planned_s: when the trace wanted it sent; all latencies count from here, so a request that had to wait for its
    sending has waited.
    tokens_s: when each `token` event came; a token without text of its own has none.
    """

    number: int
    part: Part
    wanted_tokens: int
    planned_s: float
    sent_s: float
    ended_s: float
    tokens_s: tuple[float, ...] = ()
    was_queued: bool = False
    counts: Counts | None = None
    failure: Failure | None = None

    @property
    def is_measured(self) -> bool:
        return self.part == "measured"

    @property
    def ttft_s(self) -> float | None:
        """From the planned sending to the first token."""
        return self.tokens_s[0] - self.planned_s if self.tokens_s else None

    @property
    def e2e_s(self) -> float | None:
        """From the planned sending to the end of a whole answer."""
        return self.ended_s - self.planned_s if self.counts else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (last token - first token) / (n - 1), n by the engine's count."""
        if self.counts is None or self.counts.completion_tokens < 2 or len(self.tokens_s) < 2:
            return None
        return (self.tokens_s[-1] - self.tokens_s[0]) / (self.counts.completion_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """The gaps between token events."""
        return [later - earlier for earlier, later in zip(self.tokens_s, self.tokens_s[1:], strict=False)]

    @property
    def queue_s(self) -> float | None:
        """Time in the node's line, by the node."""
        return self.counts.queue_ms / 1000 if self.counts else None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens that were really read, by the time of reading them; both the engine's."""
        if self.counts is None or not self.counts.prefill_ms:
            return None
        fresh = self.counts.prompt_tokens - (self.counts.cached_tokens or 0)
        return fresh / self.counts.prefill_ms * 1000 if fresh > 0 else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """llama.cpp's decode time is from the first token to the last, so (n - 1) by it; without it, 1 / TPOT."""
        if self.counts is None or self.counts.completion_tokens < 2:
            return None
        if self.counts.decode_ms:
            return (self.counts.completion_tokens - 1) / self.counts.decode_ms * 1000
        return 1 / self.tpot_s if self.tpot_s else None


class ClosedLoop(msgspec.Struct, frozen=True, tag="closed"):
    """So many clients, each of which asks again when it was answered."""

    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} at once"


class OpenLoop(msgspec.Struct, frozen=True, tag="open"):
    """Requests come at their times, whether earlier ones were answered or not."""

    rate_per_s: float
    arrivals: Arrivals = "constant"

    def __str__(self) -> str:
        return f"{self.rate_per_s:g}/s {self.arrivals}"


Load = ClosedLoop | OpenLoop


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was to be measured. Equal settings and trace make runs comparable."""

    seed: int
    prompt_tokens: tuple[int, ...]
    max_tokens: int
    loads: tuple[Load, ...]
    requests: int
    warm_up: int | None = None
    duration_s: float | None = None
    timeout_s: float = 300.0
    sweep_to: int | None = None


class Stage(msgspec.Struct):
    """One load. `ended_s` is None while it goes on, `cut_short` says why it ended early.

    dropped: samples from before it was cut off; they are in no figure. first_number: of its prompts.
    """

    number: int
    load: Load
    began_s: float
    ended_s: float | None = None
    full_until_s: float | None = None
    cut_short: str = ""
    samples: list[Sample] = []
    dropped: list[Sample] = []
    first_number: int = 0

    def begin_anew(self, at_s: float) -> None:
        """A load that stood still for a while has no rate, so what was cut off is measured again from its warm-up.

        With other prompts: an engine may know those that it was asked before.
        """
        self.first_number = max((sample.number for sample in self.samples), default=self.first_number) + UNTOLD
        self.dropped, self.samples = [*self.dropped, *self.samples], []
        self.began_s, self.full_until_s, self.cut_short = at_s, None, ""

    @property
    def measured(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.is_measured]


class ClientCost(msgspec.Struct, frozen=True):
    """How far the measuring itself was behind: lateness of a heartbeat, and the share of one core that it took."""

    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    cpu_share: float


class Mark(msgspec.Struct, frozen=True):
    """What speaks against a run. A run with an `is_invalid` mark is used for no decision."""

    code: str
    reason: str
    remedy: str
    is_invalid: bool = True


class Facts(msgspec.Struct, frozen=True):
    """What the node said of itself at one moment: GET /node, /health, and its counters."""

    at_s: float
    moment: Literal["before", "during", "after"]
    node: dict[str, Any] | None = None
    health: dict[str, Any] | None = None
    counters: dict[str, float] = {}


class Run(Header, kw_only=True):
    """One node under load, measured once."""

    kind: str = KIND
    settings: Settings
    calibration: Calibration | None = None
    trace: str = ""
    facts: list[Facts] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    client: ClientCost | None = None
    marks: list[Mark] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        return not any(mark.is_invalid for mark in self.marks)
