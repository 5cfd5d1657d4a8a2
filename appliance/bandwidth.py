"""POST /node/bandwidth: measure how fast this node's memory is read, alone, and remember it for GET /node.

It takes all slots as POST /benchmark does, since a generation beside it would spoil both. How it is measured is
bandwidth_probe.py's. As with a benchmark, a client that asks for events is kept alive while it waits its turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import falcon
import gevent
import msgspec
from gevent.event import Event

from appliance import sse
from appliance.admission import Admission, Ticket
from appliance.bandwidth_probe import Bandwidth
from appliance.benchmark import wants_events
from appliance.benchmark_run import Progress, wait_alone
from appliance.clientwatch import ClientWatch
from appliance.config import Config
from appliance.errors import ClientGone, NotReady
from appliance.eventstream import SILENCE, Silence, begin, frames

NO_MEMORY_RETRY_S = 60

log = logging.getLogger("appliance")

Happening = Progress | Silence | Bandwidth


class MemoryBandwidth:
    """The resource. `measured`: the last figure, None while nobody asked for one."""

    def __init__(self, config: Config, admission: Admission, probe: Callable[[], Bandwidth]) -> None:
        self.measured: Bandwidth | None = None
        self._config = config
        self._admission = admission
        self._probe = probe

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        events = self._answer(req.context.key.id, req.env.get("gunicorn.socket"))
        if wants_events(req):
            begin(req, resp, frames(events, _frame))
            return
        with closing(events):
            resp.media = msgspec.to_builtins(next(event for event in events if isinstance(event, Bandwidth)))

    def _answer(self, key_id: str, client: Any) -> Generator[Happening, None, None]:
        """1. All slots, when those that run have finished. 2. The measuring, in threads. The slots are given back when
        it has ended, also where the client has left before. Raises: ApplianceError."""
        with ClientWatch(client) as watch:
            ticket = self._admission.enter_exclusive(key_id)
            measuring = None
            try:
                yield from wait_alone(ticket, watch, self._config)  # 1
                measuring = gevent.spawn(self._measure, ticket)  # 2
            finally:
                if measuring is None:
                    self._admission.leave(ticket)
            yield Progress("measuring")
            ended = Event()
            measuring.rawlink(lambda _: ended.set())
            watch.call_when_gone(ended.set)
            while not measuring.ready():
                was_ended = ended.wait(self._config.sse_ping_s)
                if watch.is_gone:
                    raise ClientGone("The client has left before its answer.")
                if not was_ended:
                    yield SILENCE
            if measuring.value is None:
                raise NotReady("This node has no memory left to measure with.", retry_after_s=NO_MEMORY_RETRY_S)
            yield measuring.value

    def _measure(self, ticket: Ticket) -> Bandwidth | None:
        """None where there is no room for it."""
        try:
            self.measured = self._probe()
        except MemoryError:
            return None
        finally:
            self._admission.leave(ticket, is_measured=False)
        log.info("Memory is read at %.2f GB/s by %d threads", self.measured.bytes_per_s / 1e9, self.measured.threads)
        return self.measured


def _frame(event: Happening) -> bytes:
    if isinstance(event, Bandwidth):
        return sse.event("result", msgspec.to_builtins(event))
    if isinstance(event, Progress):
        return sse.event("progress", msgspec.to_builtins(event))
    return sse.PING
