"""Who generates now, who waits, and who is refused: slots and the one bounded line before them.

Pure but for the event that wakes a waiting request: it knows no HTTP and no engine, and takes its clock. The engine
behind has an unbounded queue of its own, so what is admitted here is all that it ever sees.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from heapq import heapify, heappop, heappush
from types import TracebackType

from gevent.event import Event

from appliance.errors import ApplianceError, DeadlineTooShort, Displaced, NotReady, QueueFull
from appliance.line import Line

MEASURED_SERVICES = 32  # the last so many generations make the mean that estimates rest on
UNMEASURED_RETRY_S = 5.0  # Retry-After before anything was measured
Clock = Callable[[], float]


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    LEFT = "left"


class Ticket:
    """One request's place, in the line or in a slot. Leaving its `with` block frees the place, whatever happened."""

    __slots__ = (
        "_admission", "_on_cut_off", "entered_at", "is_exclusive", "key_id", "refusal", "started_at", "state", "woken",
    )  # fmt: skip

    def __init__(self, admission: Admission, key_id: str, entered_at: float, is_exclusive: bool) -> None:
        self._admission = admission
        self.key_id = key_id
        self.entered_at = entered_at
        self.started_at = entered_at
        self.is_exclusive = is_exclusive
        self.state = State.WAITING
        self.refusal: ApplianceError | None = None
        self.woken = Event()
        self._on_cut_off: Callable[[], object] | None = None

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._admission.leave(self, is_measured=error is None)

    def call_when_cut_off(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when the slot is taken away, at once if it has been; `refusal` then says why."""
        self._on_cut_off = callback
        if self.refusal is not None:
            callback()

    def cut_off(self, refusal: ApplianceError) -> None:
        self.refusal = refusal
        if self._on_cut_off is not None:
            self._on_cut_off()

    @property
    def position(self) -> int:
        """How many requests are served before this one, plus one; 0 when it runs."""
        return self._admission.position(self)

    @property
    def eta_s(self) -> float | None:
        """Estimated seconds until this request gets its slot; 0 when it has it, None while nothing was measured."""
        if self.state is not State.WAITING:
            return 0.0
        return self._admission.estimate_wait_s(ahead=self.position - 1)


class Admission:
    """Slots, the line, and the estimates that both give.

    slots: generations that may run at once (the engine's parallel slots).
    queue_limit: requests that may wait.
    clock: monotonic seconds.
    """

    def __init__(self, slots: int, queue_limit: int, clock: Clock = time.monotonic) -> None:
        self.slots = slots
        self.queue_limit = queue_limit
        self.is_draining = False
        self._clock = clock
        self._line: Line[Ticket] = Line()
        self._running: dict[Ticket, None] = {}
        self._exclusive: Ticket | None = None
        self._service_s: deque[float] = deque(maxlen=MEASURED_SERVICES)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def is_benchmarking(self) -> bool:
        return self._exclusive is not None

    def enter(self, key_id: str, deadline_s: float | None = None) -> Ticket:
        """Take a slot, or a place in the line.

        1. Draining: refuse.
        2. A free slot, nobody waiting, no benchmark: run now.
        3. The request's own deadline (seconds from now) is sooner than the line can serve it: refuse with the estimate.
        4. Fewer than `queue_limit` wait: wait.
        5. The line is full, this key has nobody in it and another has two or more: that key's newest gives way, so
           that no key's first request is ever shut out by another key's many.
        6. Otherwise refuse now, while a 429 is still cheap.

        Returns: a Ticket, running (2) or waiting (4, 5).
        Raises: NotReady (1), DeadlineTooShort (3), QueueFull (6).
        """
        if self.is_draining:
            raise self._draining()
        ticket = Ticket(self, key_id, self._clock(), is_exclusive=False)
        if self._has_free_slot() and not self._line:
            self._start(ticket)
            return ticket
        self._refuse_hopeless(key_id, deadline_s)
        if len(self._line) >= self.queue_limit:
            self._make_room_for(key_id)
        self._line.push(ticket)
        return ticket

    def enter_exclusive(self, key_id: str) -> Ticket:
        """Take all slots at once, when those that run now have finished; meanwhile nobody else starts.

        Raises: NotReady when draining, or when another exclusive request waits or runs.
        """
        if self.is_draining:
            raise self._draining()
        if self._exclusive is not None:
            raise NotReady("A benchmark is running on this node; try again when it is done.", retry_after_s=60)
        ticket = self._exclusive = Ticket(self, key_id, self._clock(), is_exclusive=True)
        self._advance()
        return ticket

    def leave(self, ticket: Ticket, *, is_measured: bool = True) -> None:
        """Free the ticket's place and let the next ones start. Safe to call again.

        is_measured: the slot was used to a normal end, so its time counts for the estimates.
        """
        state, ticket.state = ticket.state, State.LEFT
        if state is State.LEFT:
            return
        if ticket.is_exclusive:
            self._exclusive = None
        elif state is State.WAITING:
            self._line.remove(ticket)
        if state is State.RUNNING:
            del self._running[ticket]
            if is_measured and not ticket.is_exclusive:
                self._service_s.append(self._clock() - ticket.started_at)
        self._advance()

    def drain(self) -> None:
        """Refuse new requests and those that wait, and end a benchmark, which could take long; the rest goes on."""
        self.is_draining = True
        for ticket in self._line.clear():
            self._evict(ticket, self._draining())
        if self._exclusive is None:
            return
        if self._exclusive.state is State.RUNNING:
            self._exclusive.cut_off(self._draining())
            return
        exclusive, self._exclusive = self._exclusive, None
        self._evict(exclusive, self._draining())

    def resume(self) -> None:
        self.is_draining = False

    def cut_off_running(self) -> None:
        """End what still runs: the worker shuts down."""
        for ticket in list(self._running):
            ticket.cut_off(NotReady("This node is shutting down; try another node.", retry_after_s=UNMEASURED_RETRY_S))

    def position(self, ticket: Ticket) -> int:
        if ticket.state is not State.WAITING or ticket.is_exclusive:
            return 0
        return self._line.position(ticket)

    def estimate_wait_s(self, ahead: int) -> float | None:
        """Seconds until a request with `ahead` others before it in the line gets a slot.

        Plays the line forward: each slot is free when its request has taken the mean service time of the last
        MEASURED_SERVICES generations (one that has run longer is taken to end soon), and takes the next in turn.
        Returns: None while nothing has been measured, or a benchmark holds the slots.
        """
        if not self._service_s or self._exclusive is not None:
            return None
        mean_s = sum(self._service_s) / len(self._service_s)
        now = self._clock()
        free_in_s = [max(mean_s - (now - ticket.started_at), mean_s / 10) for ticket in self._running]
        free_in_s += [0.0] * (self.slots - len(free_in_s))
        heapify(free_in_s)
        for _ in range(ahead):
            heappush(free_in_s, heappop(free_in_s) + mean_s)
        return free_in_s[0]

    def retry_after_s(self) -> float:
        """Seconds until the whole line of this moment has been served its slots."""
        return self.estimate_wait_s(ahead=len(self._line)) or UNMEASURED_RETRY_S

    def _has_free_slot(self) -> bool:
        return self._exclusive is None and not self.is_draining and len(self._running) < self.slots

    def _refuse_hopeless(self, key_id: str, deadline_s: float | None) -> None:
        wait_s = self.estimate_wait_s(ahead=self._line.ahead_of_newcomer(key_id))
        if deadline_s is None or wait_s is None or wait_s <= deadline_s:
            return
        raise DeadlineTooShort(
            f"This request would wait about {wait_s:.1f} s, longer than its X-Request-Timeout-S of {deadline_s:g} s.",
            retry_after_s=wait_s,
            eta_s=round(wait_s, 1),
        )

    def _make_room_for(self, key_id: str) -> None:
        if self._line and not self._line.waiting_of(key_id):
            newest = self._line.newest_of_longest()
            if self._line.waiting_of(newest.key_id) > 1:
                self._line.remove(newest)
                refusal = Displaced(
                    "The line is full and another key's first request took this place; try again later.",
                    retry_after_s=self.retry_after_s(),
                )
                self._evict(newest, refusal)
                return
        raise QueueFull(
            f"{len(self._running)} requests run and {len(self._line)} wait, the most this node takes; try again later.",
            retry_after_s=self.retry_after_s(),
        )

    def _advance(self) -> None:
        while self._line and self._has_free_slot():
            self._start(self._line.pop())
        if self._exclusive is not None and self._exclusive.state is State.WAITING and not self._running:
            self._start(self._exclusive)

    def _start(self, ticket: Ticket) -> None:
        ticket.state = State.RUNNING
        ticket.started_at = self._clock()
        self._running[ticket] = None
        ticket.woken.set()

    def _evict(self, ticket: Ticket, refusal: ApplianceError) -> None:
        ticket.state = State.LEFT
        ticket.refusal = refusal
        ticket.woken.set()

    def _draining(self) -> NotReady:
        return NotReady(
            "This node is draining and takes no new requests; try another node, or this one later.",
            retry_after_s=self.estimate_wait_s(ahead=self.slots) or UNMEASURED_RETRY_S,
        )
