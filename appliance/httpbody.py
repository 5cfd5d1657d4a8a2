"""The payload inside an HTTP/1.1 response, from bytes cut anywhere. Pure."""

from __future__ import annotations

from appliance.errors import EngineFailed
from appliance.protocol import quote

HEAD_LIMIT_BYTES = 64 * 1024
CHUNK_LIMIT_BYTES = 1024 * 1024


class ResponseBody:
    """Takes a response as it arrives: chunked, of a length, or until its end; `status` comes with the whole head."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.is_complete = False
        self._is_chunked = False
        self._left: int | None = None  # bytes to come of a body with a length
        self._pending = b""

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; return the payload in it.

        Raises: EngineFailed for bytes that are no HTTP response.
        """
        self._pending += data
        if self.status is None and not self._read_head():
            return b""
        if self._is_chunked:
            return self._read_chunks()
        payload, self._pending = self._pending, b""
        if self._left is not None:
            self._left -= len(payload)
            self.is_complete = self._left <= 0
        return payload

    def _read_head(self) -> bool:
        head, found, rest = self._pending.partition(b"\r\n\r\n")
        if not found:
            if len(head) > HEAD_LIMIT_BYTES:
                raise EngineFailed("The engine's response has an endless header.")
            return False
        status_line, *lines = head.split(b"\r\n")
        parts = status_line.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise EngineFailed(f"What answers on the engine's port speaks no HTTP: {quote(repr(status_line))}")
        headers = {name.strip().lower(): value.strip().lower() for name, _, value in (x.partition(b":") for x in lines)}
        self.status = int(parts[1])
        self._is_chunked = headers.get(b"transfer-encoding") == b"chunked"
        length = headers.get(b"content-length", b"")
        self._left = int(length) if length.isdigit() else None
        self.is_complete = self._left == 0
        self._pending = rest
        return True

    def _read_chunks(self) -> bytes:
        payload, start, data = [], 0, self._pending
        while not self.is_complete and (eol := data.find(b"\r\n", start)) >= 0:
            try:
                size = int(data[start:eol].partition(b";")[0], 16)
            except ValueError as error:
                raise EngineFailed("The engine's response breaks HTTP's chunked framing.") from error
            if not 0 <= size <= CHUNK_LIMIT_BYTES:
                raise EngineFailed(f"The engine sent a chunk of {size} bytes, more than {CHUNK_LIMIT_BYTES}.")
            end = eol + 2 + size
            if len(data) < end + 2:
                break
            self.is_complete = size == 0  # trailers, if any, tell us nothing
            payload.append(data[eol + 2 : end])
            start = end + 2
        self._pending = b"" if self.is_complete else data[start:]
        if len(self._pending) > 2 * CHUNK_LIMIT_BYTES:
            raise EngineFailed("The engine's response breaks HTTP's chunked framing.")
        return b"".join(payload)
