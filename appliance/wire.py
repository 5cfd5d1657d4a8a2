"""Where gunicorn does on the wire what we do not want: how it writes a chunk and a refusal, and that it waits for ever
for a client that does not read."""

from __future__ import annotations

import json
import socket

from gunicorn import util


def take_over() -> None:
    """Put ours in the place of gunicorn's; in the worker only."""
    util.write_chunk = write_chunk  # type: ignore[assignment]  # called by position
    util.write_error = refuse_in_json  # type: ignore[assignment]  # called by position


def reset_unread(listener: socket.socket, timeout_s: float) -> None:
    """Have the kernel end each connection whose client leaves what it was sent unread for `timeout_s` seconds, or
    unacknowledged, since it vanished without a word. A listener's connections inherit the option."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))


def write_chunk(client: socket.socket, data: bytes) -> None:
    """One chunk, by one send as long as the client keeps up.

    gunicorn's sendall() has gevent ask the kernel for the size of the buffer and slice the data, at every token.
    """
    chunk = b"%X\r\n%b\r\n" % (len(data), data)
    sent = client.send(chunk)
    if sent < len(chunk):
        client.sendall(chunk[sent:])


def refuse_in_json(client: socket.socket, status: int, reason: str, detail: str) -> None:
    """What gunicorn refuses before the service sees it (a header that is none, too many), as our errors look."""
    code = reason.lower().replace(" ", "_")
    body = json.dumps({"error": code, "detail": detail or "The node could not read this request."}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    util.write_nonblock(client, head.encode() + body)
