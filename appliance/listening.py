"""The worker's listening sockets, and how they are closed without a connection lost.

Closing a listening socket resets the connections that the kernel has made and nobody has accepted yet: their clients
see a failure, where a refused connection would have sent them to another node. So new attempts are held off first,
those that are being made come through and are answered, and then it is closed. Who was held off tries again by itself,
after a second, and is refused.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from contextlib import suppress
from typing import Any, ClassVar

import gevent
from gevent.server import StreamServer
from gunicorn.workers import ggevent

HANDSHAKE_S = 0.05  # a connection in the making needs one round trip in the local network
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h; Python does not name them
SYN, ACK = 0x02, 0x10
# Classic BPF, opcode, jump if true, jump if false, operand: a TCP segment with SYN and without ACK is dropped.
DROP_NEW = (
    (0x30, 0, 0, 13),  # the byte of the flags
    (0x54, 0, 0, SYN | ACK),
    (0x15, 0, 1, SYN),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
# The least TTL of a segment, and the same of IPv6; linux/in.h, in6.h. None comes with more than 255.
MIN_TTL = {
    socket.AF_INET: ((socket.IPPROTO_IP, 21),),
    socket.AF_INET6: ((socket.IPPROTO_IP, 21), (socket.IPPROTO_IPV6, 73)),  # which may speak IPv4 as well
}
MOST_TTL = 255


class Listening(StreamServer):
    """gunicorn's server of one socket. Its worker keeps it to itself, so ours are noted."""

    all: ClassVar[list[Listening]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_held_off = False
        self.all.append(self)

    def do_read(self) -> Any:
        """Accept one. What was in the making when others were held off has the listener's TTL, and hears nothing."""
        accepted = super().do_read()
        if accepted and self.is_held_off:
            _require_ttl(accepted[0], 0)
        return accepted


def take_over() -> None:
    """Have gunicorn use ours; in the worker only."""
    ggevent.StreamServer = Listening  # type: ignore[attr-defined]  # it is gevent's, imported there


def stop_listening() -> None:
    """Accept what is there, then refuse. Answers under way go on."""
    for server in Listening.all:
        server.is_held_off = True
        hold_off(server.socket)
    gevent.sleep(HANDSHAKE_S)
    for server in Listening.all:
        while accepted := server.do_read():
            server.do_handle(*accepted)
        server.close()


def hold_off(listener: socket.socket) -> None:
    """Have the kernel drop attempts to connect. A connection that is being made is none of them.

    Some kernels leave filters to the administrator. There a listener is told to want segments that have passed no
    router and began with the greatest TTL, which is nobody's; what makes a connection complete is not asked for it.
    """
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_NEW)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(DROP_NEW), ctypes.addressof(buffer))
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    except PermissionError:
        _require_ttl(listener, MOST_TTL)


def let_in(listener: socket.socket) -> None:
    """Undo `hold_off`. The socket is the master's too: a worker that ended alone has left it to the next one so."""
    _require_ttl(listener, 0)
    with suppress(FileNotFoundError):  # none was attached
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _require_ttl(either: socket.socket, least: int) -> None:
    for level, name in MIN_TTL.get(either.family, ()):
        either.setsockopt(level, name, least)


def open_connections() -> int:
    """Connections that are answered, or idle between two requests."""
    return sum(len(server.pool) for server in Listening.all if server.pool is not None)
