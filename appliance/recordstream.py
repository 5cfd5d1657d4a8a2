"""One generation's stream, read from the socket itself.

Not through the official client, whose httpx and pydantic layers cost half as much again a token, and more memory than
all else of the service (docs/dependencies.md has the figures).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import gevent
import msgspec
from gevent.core import READ  # type: ignore[import-not-found]  # the stubs leave it out
from gevent.hub import Waiter

from appliance.errors import ApplianceError, EngineFailed, EngineStalled
from appliance.httpbody import ResponseBody
from appliance.protocol import LOOPBACK, RETRY_S, Record, decode_record, quote, unreachable

RECEIVE_BYTES = 16 * 1024
LINE_LIMIT_BYTES = 1024 * 1024
LEAST_TIMEOUT_S = 0.001


@dataclass(frozen=True)
class Patience:
    """How long the engine may take, in seconds: to connect; from the request to the first record (the load and the
    whole prefill come before it, and Ollama sends no header earlier); between two records."""

    connect_s: float = 2.0
    first_token_s: float = 180.0
    stall_s: float = 60.0


class RecordStream:
    """The records of one generation, as they arrive. Leaving its `with` block ends it, in the engine too.

    connection: open to the engine on `port`; the stream's own from now on.
    request: the body of POST /api/chat.
    error_of: what an error response, of a status and a body, means.

    Raises: EngineUnreachable when the request cannot be sent.
    """

    def __init__(
        self,
        connection: socket.socket,
        port: int,
        request: bytes,
        patience: Patience,
        error_of: Callable[[int, bytes], ApplianceError],
    ) -> None:
        self.is_ended = False
        self._port = port
        self._patience = patience
        self._error_of = error_of
        self._socket = connection
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(connection.fileno(), READ)
        self._body = ResponseBody()
        self._is_aborted = False
        self._failure: EngineFailed | None = None  # behind records that have been handed on
        self._lines = b""
        self._stalled_at = time.monotonic() + patience.first_token_s
        self._has_begun = False
        head = (
            f"POST /api/chat HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(request)}\r\nConnection: close\r\n\r\n"
        )
        try:
            self._socket.sendall(head.encode() + request)
        except OSError as error:
            self.close()
            raise unreachable(port, error) from error
        self._socket.settimeout(0)

    def __enter__(self) -> RecordStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def receive(self, timeout_s: float) -> list[Record]:
        """The records that have arrived; waits up to `timeout_s` seconds for the first of them.

        Returns: an empty list when the engine stayed silent. The last record has `done`; then `is_ended` is true.
        Raises: EngineStalled, EngineFailed (also for an end without `done`), EngineBusy, ModelMissing, PromptTooLong,
        EngineUnreachable (it closed the connection before its first byte).
        """
        if self._failure is not None:
            raise self._failure
        now = time.monotonic()
        silent_at = now + timeout_s
        while not self._body.is_complete:
            is_readable = self._is_readable(max(LEAST_TIMEOUT_S, min(silent_at, self._stalled_at) - now))
            # While a slow client was served the engine's time may have run out, with its records long here.
            if is_readable or time.monotonic() >= self._stalled_at:
                records = self._read()
                if records:
                    return records
            now = time.monotonic()
            if now >= self._stalled_at:
                raise self._stalled()
            if now >= silent_at:
                return []
        raise self._ended_early(None)

    def abort(self) -> None:
        """Tell the engine to stop, now. Does not block: it may be called from the event loop."""
        self._is_aborted = True
        with suppress(OSError):  # the engine was quicker
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> int:
        """End the generation, in the engine too; safe to call again. Returns: how many records nobody waited for."""
        unread = 0 if self.is_ended else self._count_unread()
        self._watcher.close()
        self._socket.close()
        return unread

    def _is_readable(self, timeout_s: float) -> bool:
        """Wait for the engine, leaner than gevent's recv(), which tries in vain first and makes a time-out object."""
        waiter: Waiter[bool] = Waiter(self._hub)
        timer = self._hub.loop.timer(timeout_s)
        self._watcher.start(waiter.switch, True)
        timer.start(waiter.switch, False, update=False)
        try:
            return waiter.get()
        finally:
            self._watcher.stop()
            timer.close()

    def _read(self) -> list[Record]:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise self._ended_early(error) from error
        if not data:
            raise self._ended_early(None)
        return self._parse(data)

    def _parse(self, data: bytes) -> list[Record]:
        payload = self._body.feed(data)
        if self._body.status is None:
            return []
        if self._body.status != 200:
            self._read_error(payload)
        *lines, self._lines = (self._lines + payload).split(b"\n")
        if len(self._lines) > LINE_LIMIT_BYTES:
            raise EngineFailed(f"The engine sent a line longer than {LINE_LIMIT_BYTES} bytes.")
        records = self._read_records(lines)
        if records:
            self._has_begun = True
            self._stalled_at = time.monotonic() + self._patience.stall_s
        return records

    def _read_records(self, lines: list[bytes]) -> list[Record]:
        """What came before a failure is handed on first; the failure itself at the next call."""
        records: list[Record] = []
        for line in filter(None, lines):
            try:
                records.append(self._record(line))
            except EngineFailed as failure:
                if not records:
                    raise
                self._failure = failure
                break
        return records

    def _record(self, line: bytes) -> Record:
        try:
            record = decode_record(line)
        except msgspec.MsgspecError as error:
            raise EngineFailed(f"The engine sent a line that is not one of Ollama's: {error}") from error
        if record.error is not None:
            raise EngineFailed(f"The engine failed: {quote(record.error)}", retry_after_s=RETRY_S)
        self.is_ended = self.is_ended or record.done
        return record

    def _read_error(self, payload: bytes) -> None:
        """Read the rest of an error's body, then raise what it means."""
        self._socket.settimeout(self._patience.connect_s)
        try:
            while not self._body.is_complete and len(payload) < LINE_LIMIT_BYTES:
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    break
                payload += self._body.feed(data)
        except OSError:
            pass  # what has come must do
        assert self._body.status is not None
        raise self._error_of(self._body.status, payload)

    def _stalled(self) -> EngineStalled:
        if self._has_begun:
            return EngineStalled(
                f"The engine sent no token for {self._patience.stall_s:g} s (ENGINE_STALL_TIMEOUT_S).",
                retry_after_s=RETRY_S,
            )
        return EngineStalled(
            f"The engine sent nothing for {self._patience.first_token_s:g} s (ENGINE_FIRST_TOKEN_TIMEOUT_S); "
            "a shorter prompt needs less prefill.",
            retry_after_s=RETRY_S,
        )

    def _ended_early(self, cause: Exception | None) -> ApplianceError:
        if self._body.status is None and not self._is_aborted:
            return unreachable(self._port, cause or ConnectionResetError())
        return EngineFailed("The engine ended its stream without saying that it was done.", retry_after_s=RETRY_S)

    def _count_unread(self) -> int:
        unread = 0
        try:
            self._socket.settimeout(0)
            # Bounded: nothing else runs meanwhile, and a fast engine could go on sending.
            for _ in range(LINE_LIMIT_BYTES // RECEIVE_BYTES):
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    break
                unread += self._body.feed(data).count(b"\n")
        except (OSError, ApplianceError):
            pass  # read so far as there was anything
        return unread
