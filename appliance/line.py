"""The waiting line: whose turn it is. Pure; it knows neither slots nor time."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """Whatever waits, for the sake of a key."""

    key_id: str


W = TypeVar("W", bound=Waiting)


class Line(Generic[W]):
    """Tickets that wait: round robin over keys, first in first out within a key."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, deque[W]] = OrderedDict()  # in the order of their turns
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def waiting_of(self, key_id: str) -> int:
        return len(self._by_key.get(key_id, ()))

    def push(self, ticket: W) -> None:
        self._by_key.setdefault(ticket.key_id, deque()).append(ticket)
        self._length += 1

    def pop(self) -> W:
        """Take the first ticket of the key whose turn it is; that key's next turn comes after all others'."""
        key_id, tickets = next(iter(self._by_key.items()))
        ticket = tickets.popleft()
        self._length -= 1
        self._by_key.move_to_end(key_id)
        if not tickets:
            del self._by_key[key_id]
        return ticket

    def remove(self, ticket: W) -> None:
        tickets = self._by_key[ticket.key_id]
        tickets.remove(ticket)
        self._length -= 1
        if not tickets:
            del self._by_key[ticket.key_id]

    def position(self, ticket: W) -> int:
        """1 for the next to be served."""
        return self._ahead_of(ticket.key_id, self._by_key[ticket.key_id].index(ticket)) + 1

    def ahead_of_newcomer(self, key_id: str) -> int:
        """How many would be served before a ticket of this key that came now."""
        return self._ahead_of(key_id, self.waiting_of(key_id))

    def _ahead_of(self, key_id: str, own_index: int) -> int:
        """Counts, for each other key, the turns it has before this key's ticket at `own_index`."""
        before, is_ahead = own_index, True
        for other_id, tickets in self._by_key.items():
            if other_id == key_id:
                is_ahead = False
                continue
            before += min(len(tickets), own_index + is_ahead)
        return before

    def newest_of_longest(self) -> W:
        """The last comer of the key with the most waiting."""
        return max(self._by_key.values(), key=len)[-1]

    def clear(self) -> list[W]:
        tickets = [ticket for line in self._by_key.values() for ticket in line]
        self._by_key.clear()
        self._length = 0
        return tickets
