"""Who generates now, who waits, which model is loaded how and until when. Knows no HTTP, of the engine only `close`.

One model is loaded at a time. The line is first come, first served and has no bound, as in Ollama, whose only bound
is on requests that need a load. Unlike Ollama, a load goes on when its client leaves, and serves the next.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from appliance.embedded.errors import EngineError
from appliance.embedded.gguf import Model
from appliance.embedded.options import FOREVER_S, LoadOptions
from appliance.embedded.peer import Peer


class Closes(Protocol):
    def close(self) -> None: ...


B = TypeVar("B", bound=Closes)


@dataclass(frozen=True)
class Wanted:
    """A model and how it is to be loaded."""

    model: Model
    load: LoadOptions


@dataclass(frozen=True)
class Slot(Generic[B]):
    """The right to run one generation. ready_s: when the model stood loaded for it, by the runner's clock."""

    backend: B
    ready_s: float


class _Ticket:
    """A place in the line. The pipe wakes the waiting thread, which sleeps on it and on its client's socket."""

    def __init__(self, wanted: Wanted, keep_alive_s: float | None, is_loaded: bool) -> None:
        self.wanted = wanted
        self.keep_alive_s = keep_alive_s
        self.is_loaded = is_loaded
        self.granted = False
        self.must_load = False
        self.called_fd, self._call_fd = os.pipe()

    def grant(self) -> None:
        self.granted = True
        os.write(self._call_fd, b"!")

    def close(self) -> None:
        os.close(self.called_fd)
        os.close(self._call_fd)


class Runner(Generic[B]):
    """Loads one model at a time and lets `parallel` requests generate on it.

    load: makes the engine for what is wanted; may raise EngineError. keep_alive_s: how long an idle model stays
    loaded when no request says otherwise. max_queue: how many requests that need a load may wait beside the one
    that is next. clock: seconds, monotonic.
    """

    def __init__(
        self,
        load: Callable[[Wanted], B],
        parallel: int,
        keep_alive_s: float = 300.0,
        max_queue: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._parallel = parallel
        self._default_keep_s = self._keep_s = keep_alive_s
        self._max_queue = max_queue
        self._clock = clock
        self._state = threading.Condition()
        self._line: deque[_Ticket] = deque()
        self._loaded: Wanted | None = None
        self._backend: B | None = None
        self._busy = 0
        self._changing = False  # somebody loads or unloads; nobody else may start anything
        self._expires_s = 0.0

    @contextmanager
    def slot(self, wanted: Wanted, keep_alive_s: float | None, peer: Peer) -> Iterator[Slot[B]]:
        """Take one slot on the model loaded as wanted, waiting in turn.

        1. It needs a load, and more than `max_queue` such are there already: refuse.
        2. It is loaded as wanted, a slot is free and nobody waits: at once.
        3. Nothing runs and it is next in line: load it as wanted, in this thread.
        4. Otherwise wait; leaving the line when the client leaves.

        keep_alive_s: from now on an idle model stays loaded this long; None changes nothing.
        Returns: a Slot; leaving its `with` block frees it, whatever happened inside.
        Raises: EngineError 503 (case 1) and 500 (the load failed), ClientGone (case 4).
        """
        ticket = self._join(wanted, keep_alive_s)
        try:
            arrived_s = self._clock()
            try:
                peer.wait_for(ticket.called_fd)
                backend = self._ready(ticket)
            finally:
                self._leave_line(ticket)
            yield Slot(backend, arrived_s if ticket.is_loaded else self._clock())
            del backend
        finally:
            self._finish(ticket)

    def keep(self, wanted: Wanted, keep_alive_s: float | None) -> bool:
        """Whether it stands loaded as wanted; if so, its time starts anew. Needs no slot."""
        with self._state:
            if self._changing or self._loaded != wanted:
                return False
            self._set_keep(keep_alive_s)
            self._expires_s = self._clock() + self._keep_s
            self._state.notify_all()
            return True

    def unload(self, model: Model) -> None:
        """Unload the model as soon as no request uses it."""
        with self._state:
            if self._loaded is None or self._loaded.model is not model:
                return
            self._keep_s, self._expires_s = 0.0, self._clock()
        self.unload_expired()

    def loaded(self) -> tuple[Wanted, float] | None:
        """What is loaded, and for how many seconds more if nobody asks."""
        with self._state:
            if self._loaded is None:
                return None
            return self._loaded, self._keep_s if self._busy else max(0.0, self._expires_s - self._clock())

    @property
    def waiting(self) -> int:
        """How many wait in line."""
        return len(self._line)

    def unload_expired(self) -> None:
        """Unload what has been idle for its time."""
        with self._state:
            if self._seconds_left() is None or self._expires_s > self._clock():
                return
            backend = self._take_backend()
            self._changing = True
        self._close(backend)
        self._changed()

    def unload_expired_for_ever(self) -> None:
        """The body of a background thread."""
        while True:
            with self._state:
                left_s = self._seconds_left()
                if left_s is None or left_s > 0:
                    self._state.wait(None if left_s is None else min(left_s, threading.TIMEOUT_MAX))
            self.unload_expired()

    def _join(self, wanted: Wanted, keep_alive_s: float | None) -> _Ticket:
        with self._state:
            is_loaded = self._loaded == wanted and all(ticket.wanted == wanted for ticket in self._line)
            to_load = self._changing + sum(not ticket.is_loaded for ticket in self._line)
            if not is_loaded and to_load > self._max_queue:
                raise EngineError(503, "server busy, please try again.  maximum pending requests exceeded")
            ticket = _Ticket(wanted, keep_alive_s, is_loaded)
            self._line.append(ticket)
            self._advance()
            return ticket

    def _advance(self) -> None:
        """Call everybody from the line who may start now. The lock is held."""
        while self._line and not self._changing:
            ticket = self._line[0]
            if self._loaded == ticket.wanted:
                if self._busy >= self._parallel:
                    return
            elif self._busy:
                return
            else:
                ticket.must_load = self._changing = True
            self._line.popleft()
            self._busy += 1
            self._set_keep(ticket.keep_alive_s)
            ticket.grant()

    def _ready(self, ticket: _Ticket) -> B:
        """The engine for a ticket that was called, loaded first if it is the one to do so."""
        if ticket.must_load:
            with self._state:
                old = self._take_backend()
            try:
                self._close(old)
                del old
                fresh = self._load(ticket.wanted)
                with self._state:
                    self._loaded, self._backend = ticket.wanted, fresh
                    self._keep_s = self._default_keep_s if ticket.keep_alive_s is None else ticket.keep_alive_s
            finally:
                ticket.must_load = False
                self._changed()
        backend = self._backend
        if backend is None:
            raise EngineError(500, "the model was unloaded before it could be used")
        return backend

    def _leave_line(self, ticket: _Ticket) -> None:
        with self._state:
            if not ticket.granted:
                self._line.remove(ticket)
                self._advance()

    def _finish(self, ticket: _Ticket) -> None:
        """Give back what the ticket holds: its slot, and a load that it was to do but left without."""
        with self._state:
            if ticket.granted:
                self._busy -= 1
                self._expires_s = self._clock() + self._keep_s
                if ticket.must_load:
                    self._changing = False
            ticket.close()
            self._advance()
            self._state.notify_all()
        self.unload_expired()

    def _changed(self) -> None:
        with self._state:
            self._changing = False
            self._advance()
            self._state.notify_all()

    def _seconds_left(self) -> float | None:
        """Until an idle model expires; None when nothing is loaded, or it is in use. The lock is held."""
        if self._loaded is None or self._busy or self._changing or self._line:
            return None
        return self._expires_s - self._clock()

    def _set_keep(self, keep_alive_s: float | None) -> None:
        if keep_alive_s is not None:
            self._keep_s = min(keep_alive_s, FOREVER_S)

    def _take_backend(self) -> B | None:
        backend, self._backend, self._loaded = self._backend, None, None
        return backend

    @staticmethod
    def _close(backend: B | None) -> None:
        if backend is not None:
            backend.close()
