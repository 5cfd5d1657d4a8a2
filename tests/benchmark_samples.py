"""Samples of a benchmark that never ran, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.benchmark_report import Sample


def made(**fields: Any) -> Sample:
    """A plausible measured run, but for the fields that are given."""
    usual: dict[str, Any] = {
        "run": 2,
        "context_size": 512,
        "threads": 4,
        "batch_size": 128,
        "warm_up": False,
        "latency_ms": 10_000.0,
        "ttft_ms": 1000.0,
        "load_ms": 30.0,
        "prompt_tokens": 40,
        "cached_tokens": None,
        "completion_tokens": 50,
        "finish_reason": "stop",
        "completion_tokens_per_second": 5.0,
        "prefill_tokens_per_second": 40.0,
        "decode_tokens_per_second": 5.5,
    }
    return Sample(**{**usual, **fields})


def decoded(rates: Sequence[float | None], **fields: Any) -> list[Sample]:
    """A warm-up, and a measured run for each decode throughput, all of one setting."""
    warm_up = made(warm_up=True, run=1, load_ms=900.0, decode_tokens_per_second=0.1, **fields)
    return [warm_up, *(made(decode_tokens_per_second=rate, **fields) for rate in rates)]
