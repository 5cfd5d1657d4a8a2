"""The client at the other end of a connection: whether it is still there. Knows no HTTP."""

from __future__ import annotations

import select
import socket

from appliance.embedded.errors import ClientGone

# Linux tells at once that the other side ended, whatever unread bytes lie before it; elsewhere the error bits do.
_ENDED = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Peer:
    """Watches one connected socket. A client that shut down only its sending side is gone too, as it is for Go."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._connection, _ENDED)
        return bool(poll.poll(0))

    def wait_for(self, readable_fd: int) -> None:
        """Sleep until the descriptor is readable. Raises: ClientGone when the client leaves first."""
        poll = select.poll()
        poll.register(self._connection, _ENDED)
        poll.register(readable_fd, select.POLLIN)
        if all(fd != readable_fd for fd, _ in poll.poll()):
            raise ClientGone
