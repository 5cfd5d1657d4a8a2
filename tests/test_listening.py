"""Attempts to connect are held off, also where the kernel lets no service say which segments it drops."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from appliance import listening

DEADLINE_S = 30


class Listener(socket.socket):
    """One whose kernel leaves filters to the administrator, if it is told so."""

    is_forbidden = False

    def setsockopt(self, level: int, name: int, value: bytes | int) -> None:  # type: ignore[override]
        if self.is_forbidden and name == listening.SO_ATTACH_FILTER:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        super().setsockopt(level, name, value)


@pytest.fixture(params=[("filter", "127.0.0.1"), ("no filter", "127.0.0.1"), ("no filter", "::1")], ids=str)
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    kind, host = request.param
    with Listener(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        made.is_forbidden = kind == "no filter"
        made.bind((host, 0))
        made.listen(16)
        yield made


def test_held_off_nobody_is_connected(listener: Listener) -> None:
    listening.hold_off(listener)
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(listener.family)) for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        assert select.select([], clients, [], 0)[1] == []


def test_who_was_connected_before_is_heard(listener: Listener) -> None:
    with socket.create_connection(listener.getsockname()[:2], timeout=DEADLINE_S) as client:
        listening.hold_off(listener)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(DEADLINE_S)
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_whose_connection_was_in_the_making_is_heard(host: str) -> None:
    """Its socket has the listener's TTL, as that of a client that itself sends with the greatest one has."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    least = listening.MIN_TTL[family]
    with Listener(family) as made, socket.socket(family) as client:
        made.is_forbidden = True
        made.bind((host, 0))
        made.listen(16)
        server = listening.Listening(made, lambda *_: None)
        try:
            server.is_held_off = True
            listening.hold_off(made)
            send_with(client, 255)
            client.settimeout(DEADLINE_S)
            client.connect(made.getsockname())
            send_with(client, 64)
            accepted, _ = server.do_read()
            with accepted:
                assert [accepted.getsockopt(level, name) for level, name in least] == [0] * len(least)
                accepted.settimeout(DEADLINE_S)
                client.sendall(b"hello")
                assert accepted.recv(5) == b"hello"
        finally:
            listening.Listening.all.remove(server)


def send_with(client: socket.socket, ttl: int) -> None:
    if client.family == socket.AF_INET6:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    else:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)


def test_let_in_again_clients_are_connected(listener: Listener) -> None:
    listening.hold_off(listener)
    listening.let_in(listener)
    with socket.create_connection(listener.getsockname()[:2], timeout=DEADLINE_S):
        pass
