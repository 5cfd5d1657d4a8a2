"""The events of an answer as they come, and what a broken or a refused one says. Knows no sockets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bench.running.samples import Counts, Failure

EVENT_LIMIT_BYTES = 1024 * 1024
DETAIL_CHARS = 300
TOKEN = b"event: token\n"

Pieces = Iterator[tuple[int, bytes, float]]  # status, payload and time of arrival of each piece of a response


@dataclass
class Reply:
    """What came of one request; either `counts` or `failure` is there at its end."""

    sent_at: float
    ended_at: float = 0.0
    tokens_at: list[float] = field(default_factory=list)
    was_queued: bool = False
    counts: Counts | None = None
    failure: Failure | None = None


class Broken(Exception):
    """No whole answer came."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


def blocks(pieces: Pieces) -> Iterator[bytes]:
    """The events of a response, whole. Raises: Broken for one that is none, or ends within an event."""
    pending, status = b"", 0
    for status, payload, _ in pieces:
        pending += payload
        if status == 200:
            *whole, pending = pending.split(b"\n\n")
            yield from whole
        if len(pending) > EVENT_LIMIT_BYTES:
            raise Broken(Failure("garbled", detail="An event without an end."))
    if status != 200:
        raise Broken(failure_in("status", pending, status))
    if pending:
        raise Broken(Failure("cut_off", detail="The stream ended within an event."))


def read_events(pieces: Pieces, reply: Reply) -> None:
    """Take the events as they come, to the last. Raises: Broken for a stream that ends without one."""
    pending, status = b"", 0
    for status, payload, now in pieces:
        pending += payload
        if status != 200:
            continue
        *events, pending = pending.split(b"\n\n")
        for event in events:
            _take(event, now, reply)
        if reply.counts or reply.failure:
            return
        if len(pending) > EVENT_LIMIT_BYTES:
            raise Broken(Failure("garbled", detail="An event without an end."))
    if status != 200:
        raise Broken(failure_in("status", pending, status))
    raise Broken(Failure("cut_off", detail="The stream ended without `done`."))


def _take(event: bytes, now: float, reply: Reply) -> None:
    if event.startswith(TOKEN):
        reply.tokens_at.append(now)
    elif event.startswith(b"event: done\n"):
        reply.counts, reply.ended_at = _counts(event), now
    elif event.startswith(b"event: error\n"):
        reply.failure, reply.ended_at = failure_in("event", data_of(event)), now
    elif event.startswith(b"event: queued\n"):
        reply.was_queued = True


def data_of(event: bytes) -> bytes:
    return event.partition(b"\ndata: ")[2]


def _counts(event: bytes) -> Counts:
    try:
        return msgspec.json.decode(data_of(event), type=Counts)
    except msgspec.MsgspecError as error:
        raise Broken(Failure("garbled", detail=f"A `done` that says: {error}")) from None


def failure_in(kind: Any, data: bytes, status: int | None = None) -> Failure:
    """The node's own error; its words too, where it is not ours that answers."""
    try:
        found = msgspec.json.decode(data)
        code, detail, retry = str(found["error"]), str(found.get("detail", "")), found.get("retry_after_s")
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        code, detail, retry = "", data[:DETAIL_CHARS].decode(errors="replace"), None
    retry_after_s = float(retry) if isinstance(retry, int | float) else None
    return Failure(kind, code[:80], status, detail[:DETAIL_CHARS], retry_after_s)
