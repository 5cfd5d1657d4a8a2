"""Admission under random arrivals, leavings, failures, benchmarks, drains and time.

Always: never more running than slots, never more waiting than the bound, no slot idle while somebody waits, no slot
lost, no key starved, positions that tell the order in which the waiting will be served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from fake_clock import FakeClock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.admission import Admission, State, Ticket
from appliance.errors import ApplianceError, DeadlineTooShort, Displaced, NotReady, QueueFull

KEYS = st.sampled_from(["ada", "bob", "cyd", "dot"])
WHICH = st.integers(min_value=0, max_value=999)  # which of those there are

T = TypeVar("T")


@dataclass(eq=False)
class Client:
    """One request, and what the test has seen of it."""

    ticket: Ticket
    number: int
    own_index: int  # how many of its key were waiting when it came
    was_waiting: bool
    overtaken_by: Counter[str] = field(default_factory=Counter)  # of each other key, how many started meanwhile

    @property
    def key_id(self) -> str:
        return self.ticket.key_id


class AdmissionMachine(RuleBasedStateMachine):
    @initialize(slots=st.integers(1, 3), queue_limit=st.integers(0, 7))
    def open(self, slots: int, queue_limit: int) -> None:
        self.clock = FakeClock(now=0.0)
        self.admission = Admission(slots, queue_limit, self.clock)
        self.clients: list[Client] = []
        self.waiting: list[Client] = []
        self.benchmark: Ticket | None = None
        self.number = 0

    # --- what happens

    @rule(key_id=KEYS, deadline_s=st.none() | st.floats(0.01, 100))
    def arrive(self, key_id: str, deadline_s: float | None) -> None:
        before = (self.admission.running, self.admission.waiting)
        own_index = len(self.waiting_of(key_id))
        try:
            ticket = self.admission.enter(key_id, deadline_s)
        except ApplianceError as refusal:
            assert (self.admission.running, self.admission.waiting) == before, "a refused request holds something"
            self.check_refusal(refusal, key_id, deadline_s)
            return
        assert not self.admission.is_draining
        assert deadline_s is None or ticket.eta_s is None or ticket.eta_s <= deadline_s + 1e-6
        self.number += 1
        client = Client(ticket, self.number, own_index, was_waiting=ticket.state is State.WAITING)
        self.clients.append(client)
        if client.was_waiting:
            self.drop_displaced(newcomer=client)
            self.waiting.append(client)

    @rule(key_ids=st.lists(KEYS, min_size=4, max_size=10))
    def rush(self, key_ids: list[str]) -> None:
        for key_id in key_ids:
            self.arrive(key_id, None)

    @precondition(lambda self: self.running_clients())
    @rule(which=WHICH, is_measured=st.booleans())
    def finish_or_fail(self, which: int, is_measured: bool) -> None:
        client = pick(self.running_clients(), which)
        self.leave(client, is_measured)

    @precondition(lambda self: self.waiting)
    @rule(which=WHICH)
    def give_up_waiting(self, which: int) -> None:
        client = pick(self.waiting, which)
        self.waiting.remove(client)
        self.clients.remove(client)
        self.admission.leave(client.ticket, is_measured=False)
        assert client.ticket.state is State.LEFT

    @precondition(lambda self: self.clients)
    @rule(which=WHICH)
    def leave_twice(self, which: int) -> None:
        client = pick(self.clients, which)
        self.leave(client, is_measured=False)
        before = (self.admission.running, self.admission.waiting)
        self.admission.leave(client.ticket)
        assert (self.admission.running, self.admission.waiting) == before

    @rule(key_id=KEYS)
    def begin_benchmark(self, key_id: str) -> None:
        is_refused = self.admission.is_draining or self.benchmark is not None
        if is_refused:
            with pytest.raises(NotReady):
                self.admission.enter_exclusive(key_id)
            return
        self.benchmark = self.admission.enter_exclusive(key_id)

    @precondition(lambda self: self.benchmark is not None)
    @rule()
    def end_benchmark(self) -> None:
        assert self.benchmark is not None
        self.admission.leave(self.benchmark)
        self.benchmark = None
        self.note_starts()

    @precondition(lambda self: not self.admission.is_draining)
    @rule(resumes=st.sampled_from([True, True, True, False]))
    def drain(self, resumes: bool) -> None:
        runs = [client.ticket for client in self.running_clients()]
        self.admission.drain()
        for client in self.waiting:
            assert isinstance(client.ticket.refusal, NotReady)
            self.clients.remove(client)
        self.waiting = []
        if self.benchmark is not None:
            assert isinstance(self.benchmark.refusal, NotReady)
            if self.benchmark.state is State.LEFT:
                self.benchmark = None
        assert all(ticket.state is State.RUNNING and ticket.refusal is None for ticket in runs)
        self.arrive("bob", None)
        if resumes:
            self.admission.resume()

    @precondition(lambda self: self.admission.is_draining)
    @rule()
    def resume(self) -> None:
        self.admission.resume()

    @precondition(lambda self: not self.admission.is_draining)
    @rule()
    def cut_off(self) -> None:
        """The worker shuts down: all that run are told, and leave."""
        told: list[Ticket] = []
        running = self.running_clients()
        for client in running:
            client.ticket.call_when_cut_off(lambda ticket=client.ticket: told.append(ticket))
        self.drain(resumes=False)
        self.admission.cut_off_running()
        assert told == [client.ticket for client in running]
        for client in running:
            self.leave(client, is_measured=False)
        self.admission.resume()

    @rule(seconds=st.floats(0, 60))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.waiting and self.benchmark is None)
    @rule()
    def serve_the_whole_line(self) -> None:
        """Nobody comes any more: the waiting start in the order of their positions."""
        predicted = [client.number for client in sorted(self.waiting, key=lambda client: client.ticket.position)]
        served: list[int] = []
        while running := self.running_clients():
            still_waiting = {client.number for client in self.waiting}
            self.leave(running[0], is_measured=True)
            served += sorted(still_waiting - {client.number for client in self.waiting})
        assert served == predicted
        assert self.admission.running == self.admission.waiting == 0

    # --- what always holds

    @invariant()
    def at_most_so_many_run_and_wait(self) -> None:
        assert self.admission.running <= self.admission.slots
        assert self.admission.waiting <= self.admission.queue_limit
        assert self.admission.waiting == len(self.waiting)
        runs_exclusive = self.benchmark is not None and self.benchmark.state is State.RUNNING
        assert self.admission.running == len(self.running_clients()) + runs_exclusive

    @invariant()
    def no_slot_is_idle_while_somebody_waits(self) -> None:
        if self.waiting and self.benchmark is None:
            assert self.admission.running == self.admission.slots

    @invariant()
    def a_benchmark_runs_alone_and_soon(self) -> None:
        assert self.admission.is_benchmarking == (self.benchmark is not None)
        if self.benchmark is not None:
            is_alone = not self.running_clients()
            assert (self.benchmark.state is State.RUNNING) == is_alone

    @invariant()
    def positions_are_a_permutation_and_keep_the_order_within_a_key(self) -> None:
        assert sorted(client.ticket.position for client in self.waiting) == list(range(1, len(self.waiting) + 1))
        for key_id in {client.key_id for client in self.waiting}:
            positions = [client.ticket.position for client in self.waiting_of(key_id)]
            assert positions == sorted(positions)

    @invariant()
    def no_key_is_starved(self) -> None:
        for client in self.waiting:
            assert all(turns <= client.own_index + 1 for turns in client.overtaken_by.values())

    @invariant()
    def estimates_are_never_negative_and_grow_along_the_line(self) -> None:
        etas = [client.ticket.eta_s for client in sorted(self.waiting, key=lambda client: client.ticket.position)]
        known = [eta_s for eta_s in etas if eta_s is not None]
        assert len(known) in (0, len(etas))
        assert all(eta_s >= 0 for eta_s in known)
        assert known == sorted(known)
        assert self.admission.retry_after_s() > 0

    @invariant()
    def who_may_go_on_is_woken(self) -> None:
        for client in self.clients:
            assert client.ticket.woken.is_set() == (client.ticket.state is not State.WAITING)

    def teardown(self) -> None:
        """No slot is lost: when all have left, newcomers run at once in every slot."""
        if not hasattr(self, "admission"):
            return
        if self.benchmark is not None:
            self.end_benchmark()
        for client in list(self.clients):
            self.admission.leave(client.ticket)
        assert self.admission.running == self.admission.waiting == 0
        self.admission.resume()
        newcomers = [self.admission.enter("eve") for _ in range(self.admission.slots)]
        assert all(ticket.state is State.RUNNING for ticket in newcomers)

    # --- what the test knows

    def running_clients(self) -> list[Client]:
        return [client for client in self.clients if client.ticket.state is State.RUNNING]

    def waiting_of(self, key_id: str) -> list[Client]:
        """In the order in which they came."""
        return [client for client in self.waiting if client.key_id == key_id]

    def leave(self, client: Client, is_measured: bool) -> None:
        self.clients.remove(client)
        if client in self.waiting:
            self.waiting.remove(client)
        self.admission.leave(client.ticket, is_measured=is_measured)
        self.note_starts()

    def note_starts(self) -> None:
        """Whoever has just got a slot was the first of its key, and has overtaken those who wait still."""
        started = [client for client in self.waiting if client.ticket.state is State.RUNNING]
        for client in started:
            assert client is self.waiting_of(client.key_id)[0], "a key's requests are served in their order"
            self.waiting.remove(client)
        for client in started:
            for other in self.waiting:
                if other.key_id != client.key_id:
                    other.overtaken_by[client.key_id] += 1

    def drop_displaced(self, newcomer: Client) -> None:
        """At most one gave way: the newest of a key with several, and only to a key's first request."""
        displaced = [client for client in self.waiting if client.ticket.state is State.LEFT]
        assert len(displaced) <= 1
        for client in displaced:
            assert isinstance(client.ticket.refusal, Displaced)
            assert not self.waiting_of(newcomer.key_id)
            mates = self.waiting_of(client.key_id)
            assert client is mates[-1]
            assert len(mates) == max(Counter(other.key_id for other in self.waiting).values()) > 1
            self.waiting.remove(client)
            self.clients.remove(client)

    def check_refusal(self, refusal: ApplianceError, key_id: str, deadline_s: float | None) -> None:
        assert refusal.retry_after_s is not None
        assert refusal.retry_after_s >= 1
        assert all(client.ticket.state is State.WAITING for client in self.waiting), "a refusal displaces nobody"
        if isinstance(refusal, NotReady):
            assert self.admission.is_draining
        elif isinstance(refusal, DeadlineTooShort):
            assert deadline_s is not None
            assert refusal.extra["eta_s"] >= round(deadline_s, 1)
        else:
            assert isinstance(refusal, QueueFull)
            assert len(self.waiting) == self.admission.queue_limit
            sizes = Counter(client.key_id for client in self.waiting)
            assert key_id in sizes or max(sizes.values(), default=0) <= 1, "a key's first request is shut out"


def pick(things: list[T], which: int) -> T:
    return things[which % len(things)]


AdmissionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAdmission: Callable[[], None] = AdmissionMachine.TestCase
