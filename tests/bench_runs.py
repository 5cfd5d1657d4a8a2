"""Samples and runs made by hand, for the tests of what is reckoned from them."""

from __future__ import annotations

from typing import Any

from bench.running.samples import ClosedLoop, Counts, Failure, Run, Sample, Settings, Stage
from bench.running.trace import Calibration

TOKENS = 5


def made(at_s: float = 0.0, ttft_s: float = 1.0, tpot_s: float = 0.1, tokens: int = TOKENS, **fields: Any) -> Sample:
    """A whole answer to a request that was planned and sent `at_s`."""
    times = tuple(at_s + ttft_s + i * tpot_s for i in range(tokens))
    counts = {"prompt_tokens": 40, "completion_tokens": tokens, "finish_reason": "length", **fields.pop("counts", {})}
    given: dict[str, Any] = {
        "number": 0,
        "part": "measured",
        "wanted_tokens": 40,
        "planned_s": at_s,
        "sent_s": at_s,
        "ended_s": times[-1],
        "tokens_s": times,
        "counts": Counts(**counts),
        **fields,
    }
    return Sample(**given)


def failed(at_s: float = 0.0, **failure: Any) -> Sample:
    """A request that was sent `at_s` and failed at once."""
    why = Failure(**{"kind": "refused", **failure})
    return Sample(
        number=0, part="measured", wanted_tokens=40, planned_s=at_s, sent_s=at_s, ended_s=at_s + 0.01, failure=why
    )


def stage_of(*samples: Sample, concurrency: int = 1, **fields: Any) -> Stage:
    return Stage(**{"number": 0, "load": ClosedLoop(concurrency), "began_s": 0.0, "samples": list(samples), **fields})


def run_of(*stages: Stage, **fields: Any) -> Run:
    settings = Settings(
        seed=1,
        prompt_tokens=(40,),
        max_tokens=TOKENS,
        loads=(ClosedLoop(1),),
        requests=10,
        **fields.pop("settings", {}),
    )
    given: dict[str, Any] = {
        "id": "20260101T000000Z-run-abcdef",
        "session": "s",
        "node": "pi1",
        "url": "http://pi1:8000",
        "bench_version": "0.1.0",
        "started_at": "2026-01-01T00:00:00+00:00",
        "settings": settings,
        "calibration": Calibration(),
        "stages": list(stages),
        **fields,
    }
    return Run(**given)
