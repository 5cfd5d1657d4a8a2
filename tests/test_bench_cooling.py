"""A board is let cool down before it is measured: until it is cool, and no longer than its bound."""

from __future__ import annotations

from fake_clock import FakeClock

from bench.running.cooling import COOL_WAIT_S, PAUSE_S, Cooling
from bench.running.samples import Facts


def at(temperature_c: float | None) -> Facts:
    return Facts(0.0, "before", {"temperature_c": temperature_c})


class Board:
    """Cools down by a degree with each look."""

    def __init__(self, temperature_c: float, by_c: float = 1.0) -> None:
        self.clock, self.temperature_c, self.by_c = FakeClock(0.0), temperature_c, by_c
        self.told: list[str] = []

    def look(self) -> Facts:
        self.temperature_c -= self.by_c
        return at(self.temperature_c)

    def cooled(self, to_c: float) -> Facts | None:
        cooling = Cooling(to_c, self.clock, self.clock.advance)
        return cooling.wait(at(self.temperature_c), self.look, self.told.append)


def test_a_hot_board_is_waited_for_until_it_is_cool() -> None:
    board = Board(74.0)
    found = board.cooled(70.0)
    assert found == at(70.0)
    assert board.clock.now == 4 * PAUSE_S
    assert board.told[0] == "cooling down from 74 °C"


def test_a_board_that_stays_hot_is_given_up_after_the_bound() -> None:
    board = Board(74.0, by_c=0.0)
    assert board.cooled(70.0) == at(74.0)
    assert board.clock.now == COOL_WAIT_S


def test_a_cool_board_and_one_that_tells_nothing_are_not_waited_for() -> None:
    board = Board(70.0)
    assert board.cooled(70.0) == at(70.0)
    cooling = Cooling(20.0, board.clock, board.clock.advance)
    for known in (None, at(None), Facts(0.0, "before", None)):
        assert cooling.wait(known, board.look, board.told.append) == known
    assert (board.clock.now, board.told) == (0.0, [])
