"""POST /generate: validate, have it generated, stream or collect. What happens between is generation.py's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

import falcon
import msgspec
from msgspec import Meta

from appliance import sse
from appliance.bodies import read_body
from appliance.config import Config
from appliance.errors import (
    EngineFailed,
    InvalidValue,
)
from appliance.eventstream import begin, frames
from appliance.generation import DEADLINE_HEADER, DEADLINE_LIMIT_S, Done, Generations, Happening, Order, Queued
from appliance.protocol import Prompt


class GenerateRequest(msgspec.Struct, kw_only=True):
    """The body of POST /generate; the first contract's names, types and limits."""

    prompt: Annotated[str, Meta(min_length=1, max_length=8192, description="What to answer.")]
    system: Annotated[str, Meta(max_length=4096, description="Guides the model's behaviour.")] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2048, description="At most so many tokens.")] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2, description="Sampling temperature.")] = 0.7
    top_p: Annotated[float, Meta(ge=0, le=1, description="Nucleus sampling.")] = 0.9
    top_k: Annotated[int, Meta(ge=1, le=100, description="Sample from so many likeliest tokens.")] = 40
    stop: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=256)]],
        Meta(max_length=4, description="The answer ends before any of these."),
    ] = []
    stream: Annotated[bool, Meta(description="Stream the answer as server-sent events.")] = True


class GenerateAnswer(msgspec.Struct):
    """The answer to `stream: false`; the counts are the engine's."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    finish_reason: str
    queue_ms: float
    ttft_ms: float | None
    tokens_per_second: float | None
    cached_tokens: int | None
    load_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None


class Generate:
    """The resource."""

    def __init__(self, config: Config, generations: Generations) -> None:
        self._config = config
        self._generations = generations

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        deadline_s = _deadline_s(req)
        body = read_body(req, GenerateRequest, self._config.client_timeout_s)
        order = Order(
            self._prompt(body), req.context.key.id, req.context.request_id, req.env.get("gunicorn.socket"), deadline_s
        )
        events = self._generations.answer(order)
        if not body.stream:
            resp.media = _collect(events)
            return
        begin(req, resp, frames(events, _frame))

    def _prompt(self, body: GenerateRequest) -> Prompt:
        sampling: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
        if body.stop:
            sampling["stop"] = body.stop
        return Prompt(body.prompt, body.system, body.max_tokens or self._config.max_tokens, sampling)


def _frame(event: Happening) -> bytes:
    if isinstance(event, list):
        return b"".join([sse.token(text) for text in event])
    if isinstance(event, Done):
        return sse.event("done", {"done": True, **event.as_dict()})
    if isinstance(event, Queued):
        return sse.event("queued", {"position": event.position, "eta_s": event.eta_s})
    return sse.PING


def _collect(events: Iterator[Happening]) -> dict[str, Any]:
    """The answer to a client that asked for no stream."""
    texts: list[str] = []
    for event in events:
        if isinstance(event, list):
            texts += event
        elif isinstance(event, Done):
            return {"text": "".join(texts), **event.as_dict()}
    raise EngineFailed("The engine ended its stream without saying that it was done.")


def _deadline_s(req: falcon.Request) -> float | None:
    """The request's own deadline in seconds, from its header.

    Raises: InvalidValue.
    """
    given = req.get_header(DEADLINE_HEADER)
    if given is None:
        return None
    try:
        deadline_s = float(given)
    except ValueError:
        deadline_s = math.nan
    if not 0 < deadline_s <= DEADLINE_LIMIT_S:
        allowed = f"seconds, more than 0 and at most {DEADLINE_LIMIT_S:g}"
        raise InvalidValue(
            f"{DEADLINE_HEADER}: got {given[:40]!r}; expected {allowed}.",
            field=DEADLINE_HEADER,
            allowed=allowed,
        )
    return deadline_s
