"""Notices at once that a client has closed its connection, without reading from it.

A gevent worker learns of a departure only when a write fails: two tokens late, and in a silent prefill not at all. So
the client's socket is watched by the event loop for as long as its request waits, prefills or streams.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any

import gevent
from gevent.core import READ  # type: ignore[import-not-found]  # the stubs leave it out

TCP_ESTABLISHED = 1  # tcpi_state, the first byte of Linux' struct tcp_info
PIPELINED_POLL_S = 0.02


class ClientWatch:
    """Calls back once, from the event loop, when the client's side of the connection ends.

    The callback must not block: it may close things and wake greenlets. A half-closed connection counts as gone, as
    it does for nginx and Go's net/http. Without a socket (a test's simulated request) nobody ever leaves.

    1. Nothing to read: the client is there.
    2. Readable and the connection is no longer established: end of file or a reset; the client is gone.
    3. Readable but established: a pipelined request. Its bytes stay where they are; as they keep the socket readable,
       the state is then polled every PIPELINED_POLL_S seconds.

    A client that vanished without a word is found by the kernel: what it leaves unacknowledged or unread for
    CLIENT_TIMEOUT_S (a keep-alive comment comes every few seconds) resets the connection (wire.py), which is case 2.
    """

    def __init__(self, client: socket.socket | None) -> None:
        self.is_gone = False
        self._on_gone: Callable[[], object] | None = None
        self._socket = client
        self._watcher: Any = None

    def __enter__(self) -> ClientWatch:
        if self._socket is not None:
            self._watcher = gevent.get_hub().loop.io(self._socket.fileno(), READ)
            self._watcher.start(self._on_readable)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def call_when_gone(self, callback: Callable[[], object]) -> None:
        """Have `callback` called, and no earlier one; at once when the client has left already."""
        self._on_gone = callback
        if self.is_gone:
            callback()

    def close(self) -> None:
        self._on_gone = None
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _on_readable(self) -> None:
        if self._has_left():
            self._tell()
            return
        assert self._watcher is not None
        self._watcher.close()
        self._watcher = gevent.get_hub().loop.timer(PIPELINED_POLL_S, PIPELINED_POLL_S)
        self._watcher.start(self._on_timer)

    def _on_timer(self) -> None:
        if self._has_left():
            self._tell()

    def _has_left(self) -> bool:
        assert self._socket is not None
        try:
            return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED
        except OSError:
            return True

    def _tell(self) -> None:
        on_gone, self.is_gone = self._on_gone, True
        self.close()
        if on_gone is not None:
            on_gone()
