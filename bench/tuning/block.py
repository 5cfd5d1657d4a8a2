"""One block: a node measures itself with given load-time options, alone, through its POST /benchmark.

Owns what is asked of a node, and what its answers and refusals mean. Must not know: what a block is wanted for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from statistics import median
from typing import Any

import gevent
import msgspec

from appliance.benchmark_report import Setting
from bench.running.client import BenchError, Patience, RequestFailed, Target, events
from bench.running.samples import Failure
from bench.running.trace import ENDING, WORDS
from bench.tuning.objective import Figures
from bench.tuning.space import Settings, Value

FIELDS = {"N_CTX": "context_sizes", "N_THREADS": "threads", "N_BATCH": "batch_sizes"}
PATIENCE = Patience(answer_s=31 * 60.0, silence_s=60.0)  # a node gives a benchmark half an hour
# Of these the node itself says that it is they which do not go; everything else may be over in a moment.
REFUSED = ("invalid_value", "prompt_too_long", "benchmark_timeout")
# The engine does not load them, or it was restarted in the middle: which of the two, only another attempt tells.
ENGINE_FAILED = ("engine_failed", "engine_stalled")
BUSY = ("wait_timeout", "queue_full", "displaced", "deadline_too_short", "not_ready", "engine_busy", "client_gone")


class Question(msgspec.Struct, frozen=True):
    """What each run of a block asks; equal in all blocks that are to be compared.

    runs: measured ones in a block; the node warms up before them.
    """

    words: int = 40
    max_tokens: int = 32
    runs: int = 1

    @property
    def prompt(self) -> str:
        return " ".join(WORDS[: self.words]) + ENDING


class Ran(msgspec.Struct, frozen=True):
    """One generation of a block, in the words of POST /benchmark."""

    context_size: int
    threads: int
    batch_size: int
    warm_up: bool
    latency_ms: float
    ttft_ms: float
    load_ms: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    cached_tokens: int | None = None
    streams: int = 1
    tpot_ms: float | None = None
    memory_mib: float | None = None
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None

    @property
    def setting(self) -> Setting:
        return Setting(self.context_size, self.threads, self.batch_size)

    @property
    def env(self) -> dict[str, Value]:
        return {"N_CTX": self.context_size, "N_THREADS": self.threads, "N_BATCH": self.batch_size}


class Answer(msgspec.Struct, frozen=True):
    model: str
    samples: list[Ran]

    @property
    def measured(self) -> list[Ran]:
        return [ran for ran in self.samples if not ran.warm_up]

    @property
    def env(self) -> dict[str, Value]:
        return self.samples[0].env


class SettingsRefused(BenchError):
    """The node, or its engine, cannot run with these settings."""


class EngineFailed(SettingsRefused):
    """The engine failed with these settings, this time."""


class Busy(BenchError):
    """The node takes no benchmark now: others use it, or it starts."""

    may_pass = True


class Gone(BenchError):
    """The node, or its engine, does not answer."""

    may_pass = True


def ask(
    target: Target,
    env: Mapping[str, Value],
    question: Question,
    streams: int = 1,
    on_stage: Callable[[str], None] = lambda stage: None,
    most_s: float | None = None,
) -> Answer:
    """Have the node measure itself. What `env` does not name keeps the node's own value.

    streams: generations at the same time. on_stage: is told waiting, warming_up, measuring, restoring.
    most_s: after so long of loading and generating it is ended; waiting for the node does not count.
    Raises: SettingsRefused, EngineFailed, Busy, Gone, WrongKey.
    """
    body: dict[str, Any] = {
        "prompt": question.prompt,
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "runs": question.runs,
        **{FIELDS[name]: [value] for name, value in env.items() if name in FIELDS},
    }
    if streams > 1:
        body["streams"] = streams
    answer = None
    limit = gevent.Timeout(most_s, SettingsRefused(f"{target.name}: took much longer than others, and was ended."))
    try:
        with closing(events(target, "/benchmark", msgspec.json.encode(body), PATIENCE)) as told:
            for name, data in told:
                if name == "progress":
                    stage = str(msgspec.json.decode(data).get("stage"))
                    on_stage(stage)
                    if stage == "restoring":
                        limit.cancel()
                    elif stage != "waiting" and not limit.pending:
                        limit.start()
                elif name == "result":
                    answer = msgspec.json.decode(data, type=Answer)
    except RequestFailed as failed:
        raise meaning(target, failed.failure) from None
    except (msgspec.MsgspecError, AttributeError) as error:
        raise Gone(f"{target.name}: POST /benchmark gave what no appliance sends: {error}.") from error
    finally:
        limit.close()
    if answer is None or not answer.measured:
        raise Gone(f"{target.name}: the benchmark ended without its result.")
    return answer


def meaning(target: Target, failure: Failure) -> BenchError:
    """What a failed benchmark says of the settings or of the node."""
    text = f"{target.name}: {failure.detail or failure}"
    if failure.is_answer and failure.code in REFUSED:
        return SettingsRefused(text)
    if failure.is_answer and failure.code in ENGINE_FAILED:
        return EngineFailed(text)
    if failure.is_answer and (failure.code in BUSY or failure.status in (429, 503)):
        return Busy(f"{text} Measure when nobody else uses it.")
    if failure.status in (404, 405):
        return Gone(f"{target.name}: {target.url} has no POST /benchmark; is it an appliance of this fleet?")
    return Gone(f"{text} Is it switched on and its service up? On the node: systemctl status pi-llm.")


def figures(measured: Sequence[Ran]) -> Figures | None:
    """A block's figures: medians of its runs. None where no run made two tokens: then there is no speed."""
    rates = [ran.decode_tokens_per_second for ran in measured if ran.decode_tokens_per_second]
    if not rates:
        return None
    rate = median(rates)
    tpots = [ran.tpot_ms for ran in measured if ran.tpot_ms]
    return Figures(
        decode_tokens_per_s=rate,
        ttft_ms=median(ran.ttft_ms for ran in measured),
        tpot_ms=median(tpots) if tpots else 1000 * median(ran.streams for ran in measured) / rate,
        memory_mib=max((ran.memory_mib or 0.0 for ran in measured), default=0.0),
    )


def live(settings: Settings) -> dict[str, Value]:
    """Those of the settings that a request to /benchmark carries."""
    return {name: value for name, value in settings.items if name in FIELDS}
