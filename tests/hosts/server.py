"""A download server that hosts and controller reach, and nobody else; it plays Ollama's, and can be as bad as the net.

Bound to the bridge's own address: it needs at least one running host, for the bridge is gone with the last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import BinaryIO
from urllib.parse import unquote

CHUNK = 64 * 1024


@dataclass(frozen=True)
class Faults:
    """What goes wrong. `corrupt` turns over a bit in a file's middle; `stop_after` cuts each answer off there."""

    corrupt: bool = False
    stop_after: int | None = None
    bytes_per_s: int | None = None


@dataclass(frozen=True)
class Span:
    """The bytes to send of a file: from `start` up to, without, `end`."""

    start: int
    end: int
    partial: bool


def span_of(header: str | None, size: int) -> Span | None:
    """What a Range header asks for; None when the file has no such bytes. Anything but `bytes=N-[M]` means all."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    if wanted is None:
        return Span(0, size, partial=False)
    start, end = int(wanted[1]), min(size, int(wanted[2]) + 1) if wanted[2] else size
    return Span(start, end, partial=True) if start < end else None


def chunks(file: BinaryIO, span: Span, size: int, faults: Faults) -> Iterator[bytes]:
    """The bytes of a span, with their faults."""
    position, sent, middle = span.start, 0, size // 2
    end = span.end if faults.stop_after is None else min(span.end, span.start + faults.stop_after)
    file.seek(position)
    while position < end:
        data = bytearray(file.read(min(CHUNK, end - position)))
        if faults.corrupt and position <= middle < position + len(data):
            data[middle - position] ^= 1
        position, sent = position + len(data), sent + len(data)
        yield bytes(data)


class Downloads(BaseHTTPRequestHandler):
    """GET and HEAD of plain files below one directory."""

    protocol_version = "HTTP/1.1"

    def __init__(self, directory: Path, faults: Faults, *connection: object) -> None:
        self.directory, self.faults = directory.resolve(), faults
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = (self.directory / unquote(self.path.partition("?")[0]).lstrip("/")).resolve()
        if not path.is_relative_to(self.directory) or not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        size = path.stat().st_size
        span = span_of(self.headers["Range"], size)
        if span is None:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if span.partial else HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(span.end - span.start))
        if span.partial:
            self.send_header("Content-Range", f"bytes {span.start}-{span.end - 1}/{size}")
        self.end_headers()
        if with_body:
            self.send(path, span, size)

    def send(self, path: Path, span: Span, size: int) -> None:
        self.close_connection = self.faults.stop_after is not None
        with path.open("rb") as file:
            for data in chunks(file, span, size, self.faults):
                self.wfile.write(data)
                if self.faults.bytes_per_s:
                    time.sleep(len(data) / self.faults.bytes_per_s)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: whoever downloads says what became of it."""


class Server(ThreadingHTTPServer):
    """Of a client that left before the end, nothing is said."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


def listening(directory: Path, faults: Faults, address: str, port: int = 0) -> Server:
    """A server that listens, and answers once `serve_forever` runs."""
    return Server((address, port), partial(Downloads, directory, faults))


@contextmanager
def serving(directory: Path, faults: Faults, address: str) -> Iterator[Server]:
    """A server that answers as long as the block runs; its `url` has a free port."""
    with listening(directory, faults, address) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
