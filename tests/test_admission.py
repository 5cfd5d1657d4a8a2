"""Who runs, who waits and who is refused: the numbered cases of `enter`, and the estimates."""

from __future__ import annotations

import pytest
from fake_clock import FakeClock

from appliance.admission import Admission, State, Ticket
from appliance.errors import DeadlineTooShort, Displaced, NotReady, QueueFull

SERVICE_S = 10.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(now=1000.0)


def admission_of(clock: FakeClock, slots: int = 1, queue_limit: int = 4) -> Admission:
    return Admission(slots, queue_limit, clock)


def measure(admission: Admission, clock: FakeClock, seconds: float = SERVICE_S) -> None:
    """One generation that took so long, on an idle node."""
    with admission.enter("somebody"):
        clock.advance(seconds)


def in_line(tickets: list[Ticket]) -> list[str]:
    """The keys in the order in which they will be served."""
    return [ticket.key_id for ticket in sorted(tickets, key=lambda ticket: ticket.position)]


class TestEnter:
    def test_it_runs_at_once_when_a_slot_is_free(self, clock: FakeClock) -> None:
        admission = admission_of(clock, slots=2)
        tickets = [admission.enter("a"), admission.enter("a")]
        assert [ticket.state for ticket in tickets] == [State.RUNNING, State.RUNNING]
        assert all(ticket.woken.is_set() and ticket.position == 0 for ticket in tickets)

    def test_it_waits_when_all_slots_are_taken(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        admission.enter("a")
        ticket = admission.enter("a")
        assert (ticket.state, ticket.position, ticket.woken.is_set()) == (State.WAITING, 1, False)

    def test_it_waits_behind_a_benchmark_that_waits(self, clock: FakeClock) -> None:
        admission = admission_of(clock, slots=2)
        admission.enter("a")
        admission.enter_exclusive("b")
        assert admission.enter("c").state is State.WAITING

    def test_a_full_line_refuses_with_the_time_to_come_back(self, clock: FakeClock) -> None:
        admission = admission_of(clock, queue_limit=2)
        measure(admission, clock)
        for _ in range(3):
            admission.enter("a")
        with pytest.raises(QueueFull, match="1 requests run and 2 wait") as refusal:
            admission.enter("a")
        assert refusal.value.retry_after_s == 3 * SERVICE_S
        assert (admission.running, admission.waiting) == (1, 2)

    def test_without_a_line_it_refuses_as_soon_as_the_slots_are_taken(self, clock: FakeClock) -> None:
        admission = admission_of(clock, queue_limit=0)
        admission.enter("a")
        with pytest.raises(QueueFull):
            admission.enter("b")

    def test_a_key_with_many_in_a_full_line_gives_way_to_another_keys_first(self, clock: FakeClock) -> None:
        admission = admission_of(clock, queue_limit=3)
        admission.enter("a")
        greedy = [admission.enter("a") for _ in range(3)]
        first = admission.enter("b")
        assert isinstance(greedy[-1].refusal, Displaced)
        assert greedy[-1].woken.is_set()
        assert greedy[-1].state is State.LEFT
        assert in_line([*greedy[:2], first]) == ["a", "b", "a"]

    def test_nobodys_only_request_gives_way(self, clock: FakeClock) -> None:
        admission = admission_of(clock, queue_limit=2)
        admission.enter("a")
        waiting = [admission.enter("a"), admission.enter("b")]
        with pytest.raises(QueueFull):
            admission.enter("c")
        assert [ticket.refusal for ticket in waiting] == [None, None]

    def test_a_draining_node_refuses(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        admission.drain()
        with pytest.raises(NotReady, match="draining") as refusal:
            admission.enter("a")
        assert refusal.value.retry_after_s
        admission.resume()
        assert admission.enter("a").state is State.RUNNING


class TestDeadline:
    def test_a_deadline_that_the_line_cannot_meet_is_refused_with_the_estimate(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        measure(admission, clock)
        admission.enter("a")
        admission.enter("a")
        with pytest.raises(DeadlineTooShort, match=r"about 20\.0 s") as refusal:
            admission.enter("a", deadline_s=19)
        assert (refusal.value.extra, refusal.value.retry_after_s) == ({"eta_s": 20.0}, 20)
        assert admission.waiting == 1

    def test_a_deadline_that_the_line_can_meet_waits(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        measure(admission, clock)
        admission.enter("a")
        assert admission.enter("a", deadline_s=10).state is State.WAITING

    def test_a_key_is_judged_by_its_own_turn_and_not_by_the_whole_line(self, clock: FakeClock) -> None:
        admission = admission_of(clock, queue_limit=20)
        measure(admission, clock)
        for _ in range(10):
            admission.enter("a")
        ticket = admission.enter("b", deadline_s=25)
        assert (ticket.position, ticket.eta_s) == (2, 20.0)

    def test_before_anything_is_measured_every_deadline_may_wait(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        admission.enter("a")
        assert admission.enter("a", deadline_s=0.001).state is State.WAITING


class TestLeave:
    def test_the_next_starts_when_one_leaves(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        with admission.enter("a"):
            waiting = admission.enter("b")
        assert waiting.state is State.RUNNING
        assert waiting.woken.is_set()

    def test_leaving_the_line_frees_the_place_and_starts_nobody(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        admission.enter("a")
        first, second = admission.enter("b"), admission.enter("c")
        admission.leave(first)
        assert (second.state, second.position, admission.waiting) == (State.WAITING, 1, 1)

    def test_leaving_twice_frees_one_slot(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        running = admission.enter("a")
        waiting = [admission.enter("a"), admission.enter("a")]
        admission.leave(running)
        admission.leave(running)
        assert [ticket.state for ticket in waiting] == [State.RUNNING, State.WAITING]

    def test_an_error_inside_frees_the_slot_and_is_not_measured(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        ticket = admission.enter("a")
        clock.advance(1)
        ticket.__exit__(RuntimeError, RuntimeError("the engine failed"), None)
        assert admission.running == 0
        assert admission.estimate_wait_s(ahead=0) is None


class TestFairness:
    def test_twenty_of_one_key_do_not_delay_anothers_first(self, clock: FakeClock) -> None:
        admission = admission_of(clock, queue_limit=30)
        many = [admission.enter("a") for _ in range(21)]
        first = admission.enter("b")
        assert first.position == 2
        admission.leave(many[0])
        admission.leave(many[1])
        assert first.state is State.RUNNING
        assert many[2].position == 1

    def test_keys_take_turns_and_a_key_is_served_in_order(self, clock: FakeClock) -> None:
        admission = admission_of(clock, queue_limit=9)
        admission.enter("z")
        tickets = [admission.enter(key_id) for key_id in "aaabbc"]
        assert in_line(tickets) == ["a", "b", "c", "a", "b", "a"]
        assert [ticket.position for ticket in tickets] == [1, 4, 6, 2, 5, 3]


class TestExclusive:
    def test_it_waits_for_those_that_run_and_then_runs_alone(self, clock: FakeClock) -> None:
        admission = admission_of(clock, slots=2)
        running = [admission.enter("a"), admission.enter("b")]
        benchmark = admission.enter_exclusive("c")
        admission.leave(running[0])
        assert benchmark.state is State.WAITING
        admission.leave(running[1])
        assert benchmark.state is State.RUNNING
        assert admission.enter("a").state is State.WAITING

    def test_those_that_queued_meanwhile_run_after_it(self, clock: FakeClock) -> None:
        admission = admission_of(clock, slots=2)
        with admission.enter_exclusive("c"):
            waiting = [admission.enter("a"), admission.enter("a")]
            assert admission.is_benchmarking
        assert [ticket.state for ticket in waiting] == [State.RUNNING, State.RUNNING]
        assert not admission.is_benchmarking

    def test_one_that_gives_up_waiting_lets_the_others_start(self, clock: FakeClock) -> None:
        admission = admission_of(clock, slots=2)
        admission.enter("a")
        benchmark = admission.enter_exclusive("c")
        queued = admission.enter("b")
        admission.leave(benchmark)
        assert queued.state is State.RUNNING

    def test_a_second_one_is_refused(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        admission.enter_exclusive("a")
        with pytest.raises(NotReady, match="benchmark"):
            admission.enter_exclusive("b")

    def test_its_time_is_no_generations(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        with admission.enter_exclusive("a"):
            clock.advance(600)
        assert admission.estimate_wait_s(ahead=0) is None


class TestDrain:
    def test_those_that_wait_are_refused_and_those_that_run_go_on(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        running, waiting = admission.enter("a"), admission.enter("a")
        admission.drain()
        assert isinstance(waiting.refusal, NotReady)
        assert waiting.woken.is_set()
        assert (running.state, running.refusal, admission.waiting) == (State.RUNNING, None, 0)

    def test_it_ends_a_benchmark_waiting_or_running(self, clock: FakeClock) -> None:
        for blocker in ("a", None):
            admission = admission_of(clock)
            if blocker:
                admission.enter(blocker)
            benchmark = admission.enter_exclusive("b")
            admission.drain()
            assert isinstance(benchmark.refusal, NotReady)
            admission.leave(benchmark)
            assert not admission.is_benchmarking

    def test_who_is_cut_off_is_told_at_once_or_as_soon_as_it_can_hear(self, clock: FakeClock) -> None:
        admission = admission_of(clock, slots=2)
        listens, listens_later = admission.enter("a"), admission.enter("a")
        told: list[str] = []
        listens.call_when_cut_off(lambda: told.append("at once"))
        admission.cut_off_running()
        listens_later.call_when_cut_off(lambda: told.append("later"))
        assert told == ["at once", "later"]
        assert isinstance(listens_later.refusal, NotReady)


class TestEstimates:
    def test_there_is_none_before_anything_was_measured(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        admission.enter("a")
        assert admission.enter("a").eta_s is None
        assert admission.retry_after_s() > 0

    def test_there_is_none_while_a_benchmark_holds_the_slots(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        measure(admission, clock)
        admission.enter_exclusive("a")
        assert admission.enter("b").eta_s is None

    def test_it_counts_what_the_running_one_has_had(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        measure(admission, clock)
        admission.enter("a")
        ticket = admission.enter("a")
        clock.advance(4)
        assert ticket.eta_s == SERVICE_S - 4

    def test_it_spreads_the_line_over_the_slots(self, clock: FakeClock) -> None:
        admission = admission_of(clock, slots=2)
        measure(admission, clock)
        admission.enter("a")
        clock.advance(5)
        admission.enter("a")
        tickets = [admission.enter("a") for _ in range(4)]
        assert [ticket.eta_s for ticket in tickets] == [5, 10, 15, 20]

    def test_one_that_runs_over_its_time_is_taken_to_end_soon(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        measure(admission, clock)
        admission.enter("a")
        ticket = admission.enter("a")
        clock.advance(100)
        assert ticket.eta_s == SERVICE_S / 10

    def test_the_mean_is_of_the_last_generations_only(self, clock: FakeClock) -> None:
        admission = admission_of(clock)
        measure(admission, clock, seconds=1000)
        for _ in range(32):
            measure(admission, clock, seconds=2)
        admission.enter("a")
        assert admission.retry_after_s() == 2
