"""A response that is a stream of server-sent events: how it begins, how it fails, how it is kept alive.

Knows no resource: what the events are, and their bytes, is told by who streams them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import TypeVar

import falcon

from appliance import sse
from appliance.errors import ApplianceError, ClientGone

E = TypeVar("E")

log = logging.getLogger("appliance")


class Silence:
    """Nothing to say for SSE_PING_S seconds."""


SILENCE = Silence()


class PrimedStream:
    """A response body whose first chunk has been made: what fails before it is an honest status, not a broken stream.

    Its generator has begun, so closing it runs its `finally` blocks; an unstarted generator's would never run.
    """

    def __init__(self, chunks: Generator[bytes, None, None]) -> None:
        self._first: bytes | None = next(chunks)
        self._chunks = chunks

    def __iter__(self) -> PrimedStream:
        return self

    def __next__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return next(self._chunks)

    def close(self) -> None:
        self._chunks.close()


def begin(req: falcon.Request, resp: falcon.Response, chunks: Generator[bytes, None, None]) -> None:
    """Make the response a stream of `chunks`, a generator. Raises: what the first of them raises."""
    resp.stream = req.context.stream = PrimedStream(chunks)
    resp.content_type = "text/event-stream"


def frames(events: Generator[E, None, None], frame_of: Callable[[E], bytes]) -> Generator[bytes, None, None]:
    """The SSE bytes of the events; an error before the first is raised, one after is an `error` event."""
    has_begun = False
    try:
        for event in events:
            frame = frame_of(event)
            has_begun = True
            yield frame
    except ClientGone:
        if not has_begun:
            raise
    except ApplianceError as error:
        if not has_begun:
            raise
        yield sse.event("error", error.as_dict())
    except Exception:
        if not has_begun:
            raise
        log.exception("A stream broke off")
        yield sse.event("error", ApplianceError("Something went wrong here; the node's log has it.").as_dict())
    finally:
        events.close()
