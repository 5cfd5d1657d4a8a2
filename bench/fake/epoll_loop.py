"""A server loop of generators on epoll: one generator a connection, woken by time, bytes or room to write.

Owns: sockets, deadlines, and noticing that a client left, at once and whatever its generator waits for.
Must not know: HTTP.

A connection's generator yields what it waits for:

    a float     that moment of time.monotonic(); 0.0 is the loop's next turn, FOREVER until `Loop.wake`
    READ        more bytes in `connection.received`
    WRITE       room in the socket's buffer

When the client closes or resets, ClientGone is thrown into it, in whatever wait it is.
"""

from __future__ import annotations

import contextlib
import heapq
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import TypeAlias

READ, WRITE = "read", "write"
FOREVER = float("inf")
Wait: TypeAlias = float | str
Steps: TypeAlias = Generator[Wait, None, None]

_RECEIVED_LIMIT = 16 << 20
_LINGER_0 = struct.pack("ii", 1, 0)


class ClientGone(Exception):
    """The client closed its end, or reset the connection."""


class Connection:
    """One accepted socket with the bytes that have come and not been used yet."""

    __slots__ = ("gone_ns", "is_last", "received", "sock", "steps", "ticket")

    def __init__(self, sock: socket.socket, serve: Callable[[Connection], Steps]) -> None:
        self.sock = sock
        self.received = bytearray()
        self.gone_ns = 0
        self.is_last = False  # the request being answered asked to close after it
        self.ticket = 0  # which wait is the present one: older timers are stale
        self.steps = serve(self)

    def write(self, data: bytes) -> Steps:
        """Send all of `data`, waiting for room as often as needed."""
        while True:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.gone_ns = time.monotonic_ns()
                raise ClientGone from None
            if sent == len(data):
                return
            data = data[sent:]
            yield WRITE

    def reset_on_close(self) -> None:
        """Let the coming close send RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)


class Loop:
    """Runs until stopped by an exception, such as the SystemExit of a signal handler."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, Callable[[Connection], Steps]]] = {}
        self._connections: dict[int, Connection] = {}
        self._timers: list[tuple[float, int, Connection, int]] = []
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._next_turn: deque[tuple[Connection, int]] = deque()
        self._serial = 0

    def listen(self, port: int, serve: Callable[[Connection], Steps]) -> int:
        """Accept on loopback; returns the port, which the system chooses if it was 0."""
        listener = socket.create_server(("127.0.0.1", port), backlog=2048)
        listener.setblocking(False)
        self._listeners[listener.fileno()] = (listener, serve)
        self._epoll.register(listener, select.EPOLLIN)
        return int(listener.getsockname()[1])

    def refuse(self, port: int) -> None:
        """Close the listener of `port` and reset its connections, as when a process dies."""
        for fd, (listener, _) in list(self._listeners.items()):
            if listener.getsockname()[1] == port:
                del self._listeners[fd]
                listener.close()
        for connection in list(self._connections.values()):
            if connection.sock.getsockname()[1] == port:
                connection.reset_on_close()
                self._leave(connection)

    def call_at(self, deadline: float, call: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._calls, (deadline, self._serial, call))

    def wake(self, connection: Connection) -> None:
        """Resume a connection that waits FOREVER, or cut its wait short."""
        connection.ticket += 1
        self._next_turn.append((connection, connection.ticket))

    def run(self) -> None:
        while True:
            for fd, events in self._epoll.poll(self._timeout_s(), 512):
                if fd in self._listeners:
                    self._accept(*self._listeners[fd])
                elif fd in self._connections:
                    self._on_event(self._connections[fd], events)
            self._run_due(time.monotonic())
            for _ in range(len(self._next_turn)):
                connection, ticket = self._next_turn.popleft()
                if ticket == connection.ticket:
                    self._step(connection)

    def _timeout_s(self) -> float:
        if self._next_turn:
            return 0
        deadline = min(heap[0][0] for heap in (self._timers, self._calls, [(FOREVER,)]) if heap)
        return -1 if deadline == FOREVER else max(0.0, deadline - time.monotonic())

    def _run_due(self, now: float) -> None:
        while self._calls and self._calls[0][0] <= now:
            heapq.heappop(self._calls)[2]()
        timers = self._timers
        while timers and timers[0][0] <= now:
            _, _, connection, ticket = heapq.heappop(timers)
            if ticket == connection.ticket:
                self._step(connection)

    def _accept(self, listener: socket.socket, serve: Callable[[Connection], Steps]) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, serve)
            self._connections[sock.fileno()] = connection
            self._epoll.register(sock, select.EPOLLIN)
            self._step(connection)

    def _on_event(self, connection: Connection, events: int) -> None:
        if events & ~select.EPOLLOUT:
            if not self._receive(connection):
                self._leave(connection)
                return
            if connection.ticket < 0:  # waits for bytes
                self._step(connection)
        elif events & select.EPOLLOUT:
            self._epoll.modify(connection.sock, select.EPOLLIN)
            self._step(connection)

    def _receive(self, connection: Connection) -> bool:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        connection.received += data
        if data and len(connection.received) < _RECEIVED_LIMIT:
            return True
        connection.gone_ns = time.monotonic_ns()
        return False

    def _step(self, connection: Connection) -> None:
        connection.ticket = abs(connection.ticket) + 1
        try:
            wait = next(connection.steps)
        except (StopIteration, ClientGone):
            self._close(connection)
            return
        if wait is READ:
            connection.ticket = -connection.ticket
        elif wait is WRITE:
            self._epoll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)
        elif wait == 0.0:
            self._next_turn.append((connection, connection.ticket))
        elif wait != FOREVER:
            self._serial += 1
            heapq.heappush(self._timers, (float(wait), self._serial, connection, connection.ticket))

    def _leave(self, connection: Connection) -> None:
        connection.gone_ns = connection.gone_ns or time.monotonic_ns()
        with contextlib.suppress(StopIteration, ClientGone):
            connection.steps.throw(ClientGone())
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        connection.ticket = abs(connection.ticket) + 1
        self._connections.pop(connection.sock.fileno(), None)
        connection.sock.close()
