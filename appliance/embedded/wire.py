"""One HTTP connection: read a request's body, answer with JSON, text or one record a line. Knows no route.

Headers and body bytes are as Go's net/http and gin send them, which Ollama uses: no header leaves before the
first record, JSON has `<`, `>` and `&` escaped, an error before the first record of a stream is chunked.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

import msgspec

from appliance.embedded.errors import ClientGone, EngineError
from appliance.embedded.peer import Peer

MAX_BODY_BYTES = 64 << 20
JSON = "application/json; charset=utf-8"
PLAIN = "text/plain; charset=utf-8"
BARE_PLAIN = "text/plain"  # what gin itself says


def as_json(value: Any) -> bytes:
    """The value as Go's encoding/json writes it."""
    data: bytes = msgspec.json.encode(value)
    return data.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer. `body` is the request's; `streams`: whether the answer is to be a stream."""

    protocol_version = "HTTP/1.1"
    timeout = 120  # seconds for any one read or write; also how long an idle connection may stay
    disable_nagle_algorithm = True  # each token leaves as it is made
    server: Server

    body: bytes
    peer: Peer
    streams: bool
    _has_begun: bool

    def json(self, value: Any, status: int = 200, content_type: str = JSON) -> None:
        """The whole answer."""
        self._whole(as_json(value), status, content_type)

    def text(self, text: str) -> None:
        self._whole(text.encode(), HTTPStatus.OK, PLAIN)

    def empty(self) -> None:
        """Done, and nothing to say."""
        self._whole(b"", HTTPStatus.OK, "")

    def refuse(self, status: int, reason: str = "", headers: Mapping[str, str] | None = None) -> None:
        """An answer that is no JSON; without a reason it has no body."""
        self._whole(reason.encode(), status, BARE_PLAIN if reason else "", headers)

    def record(self, value: Any) -> None:
        """One line of a streamed answer; the headers leave with the first. Raises: ClientGone."""
        self._piece(as_json(value) + b"\n", HTTPStatus.OK, "application/x-ndjson")

    def fail(self, error: EngineError) -> None:
        """The error as the answer, or as the last line of one that has begun. Raises: ClientGone."""
        value = {"error": error.message}
        if self._has_begun:
            self.record(value)
        elif self.streams:
            self._piece(as_json(value), error.status, "application/json")
        else:
            self.json(value, error.status)

    def _piece(self, data: bytes, status: int, content_type: str) -> None:
        """A part of an answer of unknown length, after the headers if it is the first."""
        head = b""
        if not self._has_begun:
            self._has_begun = True
            self._head(status, content_type)
            if self._chunks:
                self.send_header("Transfer-Encoding", "chunked")
            head = self._take_head()
        self._write(head + (b"%x\r\n%s\r\n" % (len(data), data) if self._chunks else data))

    def _end(self) -> None:
        if self._has_begun and self._chunks:
            self._write(b"0\r\n\r\n")
        elif self._has_begun:
            self.close_connection = True

    @property
    def _chunks(self) -> bool:
        return self.request_version != "HTTP/1.0"

    def _whole(self, data: bytes, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, content_type)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        head = self._take_head()
        self._write(head if self.command == "HEAD" else head + data)

    def _head(self, status: int, content_type: str) -> None:
        reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "status"
        self.send_response_only(status, reason)
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Date", self.date_time_string())
        if self.close_connection:
            self.send_header("Connection", "close")

    def _take_head(self) -> bytes:
        """The buffered headers, to leave in one packet with the body's beginning."""
        buffered: list[bytes] = self._headers_buffer  # type: ignore[attr-defined]
        head = b"".join(buffered) + b"\r\n"
        buffered.clear()
        return head

    def _write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
        except OSError:
            raise ClientGone from None

    def _read_body(self) -> None:
        """Raises: EngineError when its length is missing, no number, or too much; ClientGone when it ends early."""
        stays_open, self.close_connection = not self.close_connection, True  # if refused, what follows is unknown
        if "Transfer-Encoding" in self.headers:
            raise EngineError(411, "send the body with a Content-Length")
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal():
            raise EngineError(400, "the Content-Length is no number")
        if int(length) > MAX_BODY_BYTES:
            raise EngineError(413, f"the body may have {MAX_BODY_BYTES} bytes")
        try:
            self.body = self.rfile.read(int(length))
        except OSError:
            raise ClientGone from None
        if len(self.body) < int(length):
            raise ClientGone
        self.close_connection = not stays_open

    def _serve(self) -> None:
        self.peer = Peer(self.connection)
        self.body, self.streams, self._has_begun = b"", False, False
        try:
            self._answer()
            self._end()
        except ClientGone:
            self.close_connection = True

    def _answer(self) -> None:
        try:
            self._read_body()
            self.server.answer(self)
        except ClientGone:
            raise
        except EngineError as error:
            self.fail(error)
        except Exception as bug:
            print(f"engine: {self.command} {self.path}: {bug!r}", file=sys.stderr, flush=True)
            self.fail(EngineError(500, f"an error of the embedded engine itself: {bug!r}"))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the access log is the appliance's."""


class Server(ThreadingMixIn, TCPServer):
    """Listens on one address; each connection has its thread. answer: handles one Exchange."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, host: str, port: int, answer: Callable[[Exchange], None]) -> None:
        """Raises: OSError when the address cannot be taken."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answer = answer
        super().__init__((host, port), Exchange)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients leave between requests, and errors in requests are answered."""
