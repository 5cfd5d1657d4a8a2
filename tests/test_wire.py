"""What is written in gunicorn's place."""

from __future__ import annotations

import gevent
import pytest
from gevent import socket

from appliance.wire import write_chunk


@pytest.mark.parametrize("size", [1, 15, 16, 4096, 2_000_000])
def test_a_chunk_arrives_whole_also_where_the_client_is_slower_than_one_send(size: int) -> None:
    ours, client = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = b"x" * size
    with gevent.Timeout(10), ours, client, client.makefile("rb") as received:
        writing = gevent.spawn(write_chunk, ours, data)
        assert received.readline() == b"%X\r\n" % size
        assert received.read(size + 2) == data + b"\r\n"
        writing.get(timeout=5)
