"""A light load client: raw sockets on epoll, the time of every token's arrival beside the time that it carries.

Owns: connections, the moments of sending, receiving and closing. Times in ns are time.monotonic_ns().
Must not know: what is being compared.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable, Iterable

TIMED_TOKEN = re.compile(rb'" (\d{9,20})"')
END = re.compile(rb'"done": ?true|event: error|"error":')
_TAIL = 40


class Exchange:
    """One request on its own connection.

    tokens: pairs of arrival and sending time in ns. status: None until the head has come.
    ended: "" while it goes on, then "done", "answered" (an answer that is no stream) or "closed" (by the server).
    """

    __slots__ = ("closed_ns", "data", "ended", "ended_ns", "head", "sent_ns", "sock", "status", "tokens")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.tokens: list[tuple[int, int]] = []
        self.status: int | None = None
        self.head = self.data = b""
        self.ended = ""
        self.sent_ns = self.ended_ns = self.closed_ns = 0

    def take(self, data: bytes, now_ns: int) -> None:
        """Note what a chunk of the answer brought."""
        data = self.data + data
        if self.status is None:
            head, found, data_after = data.partition(b"\r\n\r\n")
            if not found:
                self.data = data
                return
            self.head, data = head, data_after
            self.status = int(head[9:12])
        end = 0
        for match in TIMED_TOKEN.finditer(data):
            self.tokens.append((now_ns, int(match[1])))
            end = match.end()
        if END.search(data) or (self.status != 200):
            self.finish("done" if self.status == 200 else "answered", now_ns)
        self.data = data[max(end, len(data) - _TAIL) :]

    def finish(self, how: str, now_ns: int) -> None:
        self.ended, self.ended_ns = how, now_ns

    def has_header(self, name: str) -> bool:
        return f"\r\n{name.lower()}:".encode() in self.head.lower()


class Client:
    """Runs any number of exchanges in this one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._exchanges: dict[int, Exchange] = {}

    def connect(self, port: int) -> Exchange:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        exchange = Exchange(sock)
        self._exchanges[exchange.sock.fileno()] = exchange
        self._epoll.register(exchange.sock, select.EPOLLIN)
        return exchange

    def send(self, exchange: Exchange, request: bytes) -> None:
        exchange.sent_ns = time.monotonic_ns()
        exchange.sock.send(request)

    def ask(self, port: int, request: bytes) -> Exchange:
        exchange = self.connect(port)
        self.send(exchange, request)
        return exchange

    def leave(self, exchange: Exchange) -> None:
        """Close the connection, whatever is on its way."""
        self._exchanges.pop(exchange.sock.fileno(), None)
        exchange.closed_ns = time.monotonic_ns()
        exchange.sock.close()

    def leave_all(self) -> None:
        for exchange in list(self._exchanges.values()):
            self.leave(exchange)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Receive for so long, or until something is true."""
        deadline = time.monotonic() + seconds
        while not (until and until()) and (left := deadline - time.monotonic()) > 0:
            for fd, _ in self._epoll.poll(min(left, 0.05) if until else left, 256):
                self._receive(self._exchanges[fd])

    def run_until_ended(self, exchanges: Iterable[Exchange], timeout_s: float) -> None:
        waiting = list(exchanges)
        deadline = time.monotonic() + timeout_s
        while waiting and time.monotonic() < deadline:
            for fd, _ in self._epoll.poll(max(0.0, deadline - time.monotonic()), 256):
                self._receive(self._exchanges[fd])
            waiting = [exchange for exchange in waiting if not exchange.ended]

    def _receive(self, exchange: Exchange) -> None:
        try:
            data = exchange.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now_ns = time.monotonic_ns()
        if data:
            exchange.take(data, now_ns)
            return
        self._epoll.unregister(exchange.sock)
        if not exchange.ended:
            exchange.finish("closed", now_ns)


def plain_requests_per_s(port: int, path: str, seconds: float, connections: int = 4) -> float:
    """Closed loop of GETs on kept connections; each sends its next request when its answer is there."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    socks = {}
    epoll = select.epoll()
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks[sock.fileno()] = sock
        epoll.register(sock, select.EPOLLIN)
        sock.send(request)
    received = dict.fromkeys(socks, b"")
    answers, begin = 0, time.monotonic()
    while (now := time.monotonic()) - begin < seconds:
        for fd, _ in epoll.poll(0.1):
            received[fd] += socks[fd].recv(65536)
            if is_whole(received[fd]):
                received[fd] = b""
                answers += 1
                socks[fd].send(request)
    for sock in socks.values():
        sock.close()
    epoll.close()
    return answers / (now - begin)


def is_whole(answer: bytes) -> bool:
    """Whether an answer with Content-Length has come to its end."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return length is not None and len(body) >= int(length[1])
