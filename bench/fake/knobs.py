"""What the fake engine can be told to do, and what it writes down. Data only."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import msgspec

LAST_TOKENS_KEPT = 32

Fault = Literal[
    "", "hang_first", "hang", "reset", "close", "no_done", "error", "garbage", "404", "500", "503", "too_long"
]
Text = Literal["words", "time", "emoji", "cjk", "long"]

RUNNER_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the fake does. Every knob is also an option of the command line.

    model, version: what it claims to have and to be.
    present: the model is there; false until it has been pulled.
    loaded: at the start the model is in memory, with whatever load-time options the first request brings.
    load_s: loading, and loading again when load-time options change, takes that long.
    parallel: slots; further requests wait in line without limit, as with Ollama.
    prefill_s: silence before the first record of each answer.
    tokens_per_s: each stream's pace, kept to the schedule start + i / rate; 0 is full speed.
    factors: what load-time options make of the pace, as "num_thread=2:1.5 num_batch=64:0.8"; others leave it. With a
        factor of 0 the engine cannot load them: fault "500".
    tokens: of an answer; 0 is as many as num_predict asks for (128 when that is unlimited).
    text: what tokens say. "time" is " <time.monotonic_ns() of sending>", "long" is 10,000 characters.
    fault: what goes wrong, after `after` tokens if in mid-stream. "hang_first" says nothing ever, "hang"
        nothing more, "reset" and "close" die by RST and FIN, "no_done" ends the body without a record with
        `done`, "error" and "garbage" send such a line, the rest answer the status with Ollama's body.
    faults: as many generations have the fault, then it is over; 0 is all.
    error: the message of fault "error" and of fault "500".
    split: "utf8" cuts records inside a character into two HTTP chunks, "line" cuts lines across TCP segments.
    pull_steps, pull_step_s: a pull's progress lines and the time between them.
    pull_error: a pull ends with this error instead of success.
    """

    model: str = "qwen2.5:3b"
    version: str = "0.32.15"
    present: bool = True
    loaded: bool = True
    load_s: float = 0.0
    parallel: int = 4
    prefill_s: float = 0.0
    tokens_per_s: float = 0.0
    factors: str = ""
    tokens: int = 0
    text: Text = "words"
    fault: Fault = ""
    after: int = 3
    faults: int = 0
    error: str = RUNNER_STOPPED
    split: Literal["", "utf8", "line"] = ""
    pull_steps: int = 10
    pull_step_s: float = 0.06
    pull_error: str = ""


def pace(knobs: Knobs, options: dict[str, Any]) -> float:
    """Tokens/s of an answer with these load-time options; 0 is full speed."""
    return knobs.tokens_per_s * prod(factors(knobs, options))


def is_refused(knobs: Knobs, options: dict[str, Any]) -> bool:
    return 0.0 in factors(knobs, options)


def factors(knobs: Knobs, options: dict[str, Any]) -> list[float]:
    """Those of the factors that these options meet."""
    parts = (part.split(":") for part in knobs.factors.split())
    return [float(factor) for option, factor in parts if option in {f"{k}={v}" for k, v in options.items()}]


class Seen(msgspec.Struct):
    """One generation as the engine saw it.

    ended: "" while it runs, "done", "client_gone", "engine_gone" (after /fake/down) or the fault's name.
    last_token_ns: the sending times of its last LAST_TOKENS_KEPT tokens.
    """

    id: int
    path: str
    body: dict[str, Any]
    received_ns: int
    started_ns: int = 0
    first_token_ns: int = 0
    tokens: int = 0
    last_token_ns: list[int] = []
    ended: str = ""
    ended_ns: int = 0

    def remember_token(self, now_ns: int) -> None:
        self.tokens += 1
        self.first_token_ns = self.first_token_ns or now_ns
        self.last_token_ns.append(now_ns)
        if len(self.last_token_ns) > LAST_TOKENS_KEPT:
            del self.last_token_ns[0]
