"""POST /benchmark: the node measures itself, alone, and recommends a profile.

How it goes is benchmark_run's; what is run in which order, benchmark_plan's; what the figures mean, benchmark_report's;
which setting wins, benchmark_choice's.

A client that asks for events (`Accept: text/event-stream`) is told of each run and kept alive by comments. One that
does not gets one JSON answer at the end, minutes later and after perfect silence: a proxy in between, or the client's
own time limit, may give up before.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Generator
from contextlib import closing
from typing import Annotated

import falcon
import msgspec
from msgspec import Meta

from appliance import benchmark_plan, sse
from appliance.benchmark_report import BenchmarkAnswer
from appliance.benchmark_run import Benchmarks, Happening, Job, Progress
from appliance.bodies import read_body
from appliance.config import Config
from appliance.errors import (
    InvalidValue,
)
from appliance.eventstream import begin, frames

SETTINGS_LIMIT = 16
STREAMS_LIMIT = 64
SSE_TYPE, JSON_TYPE = "text/event-stream", "application/json"


class BenchmarkRequest(msgspec.Struct, kw_only=True):
    """The body of POST /benchmark; the first contract's names, types and limits, and `threads` and `batch_sizes`."""

    prompt: Annotated[str, Meta(min_length=1, max_length=8192, description="What to answer in each run.")]
    system: Annotated[str, Meta(max_length=4096, description="Guides the model's behaviour.")] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2048, description="At most so many tokens a run.")] = 160
    temperature: Annotated[float, Meta(ge=0, le=2, description="Sampling temperature.")] = 0.2
    top_p: Annotated[float, Meta(ge=0, le=1, description="Nucleus sampling.")] = 0.9
    top_k: Annotated[int, Meta(ge=1, le=100, description="Sample from so many likeliest tokens.")] = 40
    runs: Annotated[int, Meta(ge=1, le=5, description="Measured runs a setting; warm-ups come on top.")] = 2
    streams: Annotated[
        int, Meta(ge=1, le=STREAMS_LIMIT, description="Generations at once in a measured run, at most the slots.")
    ] = 1
    context_sizes: (
        Annotated[
            list[Annotated[int, Meta(ge=128, le=131072)]],
            Meta(min_length=1, max_length=4, description="Values of N_CTX to measure; by default the node's."),
        ]
        | None
    ) = None
    threads: (
        Annotated[
            list[Annotated[int, Meta(ge=1, le=256)]],
            Meta(min_length=1, max_length=4, description="Values of N_THREADS to measure; by default the node's."),
        ]
        | None
    ) = None
    batch_sizes: (
        Annotated[
            list[Annotated[int, Meta(ge=8, le=4096)]],
            Meta(min_length=1, max_length=4, description="Values of N_BATCH to measure; by default the node's."),
        ]
        | None
    ) = None


class Benchmark:
    """The resource."""

    def __init__(self, config: Config, benchmarks: Benchmarks) -> None:
        self._config = config
        self._benchmarks = benchmarks

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        body = read_body(req, BenchmarkRequest, self._config.client_timeout_s)
        job = self._job(body)
        client = req.env.get("gunicorn.socket")
        events = self._benchmarks.answer(job, req.context.key.id, req.context.request_id, client)
        if wants_events(req):
            begin(req, resp, frames(events, _frame))
            return
        resp.media = msgspec.to_builtins(_last(events))

    def _job(self, body: BenchmarkRequest) -> Job:
        """Raises: InvalidValue for a value twice in a list, and for too many settings."""
        own = self._benchmarks.own_options
        lists = {
            "context_sizes": body.context_sizes or [own.num_ctx],
            "threads": body.threads or [own.num_thread],
            "batch_sizes": body.batch_sizes or [own.num_batch],
        }
        for field, values in lists.items():
            if len(set(values)) < len(values):
                raise InvalidValue(
                    f"{field}: got {values}; expected each value once.",
                    field=field,
                    given=str(values),
                    allowed="distinct values",
                )
        settings = benchmark_plan.settings(*lists.values())
        if len(settings) > SETTINGS_LIMIT:
            raise _too_many_settings(lists)
        own_first = sorted(settings, key=lambda options: options != own)  # it is loaded already, and ends the schedule
        runs = benchmark_plan.schedule(own_first, body.runs)
        sampling = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
        seed = secrets.randbelow(10**benchmark_plan.DIGITS)
        streams = min(body.streams, self._config.max_concurrent_requests)
        return Job(body.prompt, body.system, body.max_tokens, sampling, body.runs, settings, runs, seed, streams)


def wants_events(req: falcon.Request) -> bool:
    """Whether the client names event streams and does not like JSON better; `*/*` alone is curl's default, for JSON."""
    return SSE_TYPE in req.accept.lower() and req.client_prefers((SSE_TYPE, JSON_TYPE)) == SSE_TYPE


def _frame(event: Happening) -> bytes:
    if isinstance(event, BenchmarkAnswer):
        return sse.event("result", msgspec.to_builtins(event))
    if isinstance(event, Progress):
        return sse.event("progress", msgspec.to_builtins(event))
    return sse.PING


def _last(events: Generator[Happening, None, None]) -> BenchmarkAnswer:
    """The answer to a client that asked for no events."""
    with closing(events):
        for event in events:
            if isinstance(event, BenchmarkAnswer):
                return event
    raise AssertionError("a benchmark ends with its answer or an error")


def _too_many_settings(lists: dict[str, list[int]]) -> InvalidValue:
    asked = math.prod(len(values) for values in lists.values())
    field = max(lists, key=lambda field: len(lists[field]))
    sizes = " x ".join(f"{len(values)} {name}" for name, values in lists.items())
    return InvalidValue(
        f"{field}: {sizes} are {asked} settings; expected at most {SETTINGS_LIMIT} in one benchmark.",
        field=field,
        given=f"{asked} settings",
        allowed=f"at most {SETTINGS_LIMIT} settings",
    )
