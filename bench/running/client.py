"""One request to one node: POST /generate, its stream read as it arrives, its end told by kind.

Times are monotonic seconds, taken when bytes arrive and before they are looked at. Must not know: why it is asked.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

import gevent
import gevent.socket
import gevent.ssl
import msgspec

from appliance.errors import EngineFailed
from appliance.httpbody import ResponseBody
from bench.running.samples import Failure
from bench.running.stream import DETAIL_CHARS, Broken, Reply, blocks, data_of, failure_in, read_events

RECEIVE_BYTES = 64 * 1024


class BenchError(Exception):
    """What ends the measuring of a node; the message is for people and says what to do.

    may_pass: once that is done, the same measuring can go on.
    """

    may_pass = False


class WrongKey(BenchError):
    """The node answered 401: no further request can tell anything."""

    may_pass = True

    def __init__(self, target: Target, detail: str = "") -> None:
        super().__init__(
            f"{target.name}: the node does not take this key (401){f': {detail}' if detail else '.'} "
            "Make one on the node with `pi-llm keys create --owner bench`, and give it with --key-file."
        )


@dataclass(frozen=True)
class Patience:
    """How long a node may take, in seconds: to connect; for a whole answer; between two signs of life (the node sends a
    comment every few seconds while it has nothing else to say)."""

    connect_s: float = 5.0
    answer_s: float = 300.0
    silence_s: float = 60.0


@dataclass(frozen=True)
class Target:
    """A node to measure. The key is a secret: never part of `repr`, of a message or of a file."""

    name: str
    url: str
    key: str = field(repr=False)

    @property
    def address(self) -> tuple[str, int]:
        parts = self._parts
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_tls(self) -> bool:
        return self._parts.scheme == "https"

    def request(self, method: str, path: str, body: bytes = b"", accept: str = "*/*") -> bytes:
        """The bytes of one request, on a connection of its own."""
        lines = [
            f"{method} {self._parts.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {self._parts.netloc.rpartition('@')[2]}",
            f"X-API-Key: {self.key}",
            f"Accept: {accept}",
            "Connection: close",
            *(["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)


def generate(target: Target, prompt: str, max_tokens: int, patience: Patience) -> Reply:
    """Ask for one answer, and wait for its end.

    Sampling is greedy and nothing stops an answer early, so that equal prompts give answers of equal length.
    Raises: WrongKey.
    """
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stop": [], "stream": True}
    request = target.request("POST", "/generate", msgspec.json.encode(body))
    reply = Reply(time.monotonic())
    try:
        read_events(_exchange(target, request, patience), reply)
    except Broken as broken:
        reply.failure = broken.failure
    reply.ended_at = reply.ended_at or time.monotonic()
    if reply.failure is not None and reply.failure.status == 401:
        raise WrongKey(target, reply.failure.detail)
    return reply


def get(target: Target, path: str, patience: Patience) -> tuple[int, bytes]:
    """The status and the body of a GET. Raises: WrongKey, Unreachable."""
    payload = b""
    status = 0
    try:
        for status, piece, _ in _exchange(target, target.request("GET", path), patience):  # noqa: B007
            payload += piece
    except Broken as broken:
        raise Unreachable(target, broken.failure) from broken
    if status == 401:
        raise WrongKey(target)
    return status, payload


class RequestFailed(BenchError):
    """The node did not do what it was asked for; `failure` says which kind that is."""

    def __init__(self, target: Target, path: str, failure: Failure) -> None:
        super().__init__(f"{target.name}: {path} failed ({failure}): {failure.detail}")
        self.failure = failure


def events(target: Target, path: str, body: bytes, patience: Patience) -> Generator[tuple[str, bytes], None, None]:
    """POST, and the server-sent events of the answer, name and data, as they come; comments have no name.

    Closing the generator ends the request. Raises: WrongKey, RequestFailed (also for an `error` event).
    """
    request = target.request("POST", path, body, "text/event-stream")
    try:
        for event in blocks(_exchange(target, request, patience)):
            if event.startswith(b"event: error\n"):
                raise Broken(failure_in("event", data_of(event)))
            name = event[7:].partition(b"\n")[0].decode(errors="replace") if event.startswith(b"event: ") else ""
            yield name, data_of(event)
    except Broken as broken:
        if broken.failure.status == 401:
            raise WrongKey(target, broken.failure.detail) from None
        raise RequestFailed(target, path, broken.failure) from None


class Unreachable(BenchError):
    """No answer came from the node at all."""

    may_pass = True

    def __init__(self, target: Target, failure: Failure) -> None:
        super().__init__(
            f"{target.name}: nothing answers on {target.url} ({failure}: {failure.detail.rstrip('.')}). "
            "Is it switched on and on this network? On the node: systemctl status pi-llm."
        )
        self.failure = failure


def _exchange(target: Target, request: bytes, patience: Patience) -> Iterator[tuple[int, bytes, float]]:
    """Status, payload and time of arrival of each piece of the response. Raises: Broken."""
    connection = _connect(target, patience)
    body, ends_at = ResponseBody(), time.monotonic() + patience.answer_s
    try:
        _send(connection, request)
        while not body.is_complete:
            data, now = _receive(connection, min(patience.silence_s, ends_at - time.monotonic()))
            if not data:
                raise Broken(Failure("cut_off", detail="The connection ended before the answer did."))
            try:
                payload = body.feed(data)
            except EngineFailed:
                raise Broken(Failure("garbled", detail="What answers there speaks no HTTP.")) from None
            if body.status is not None:
                yield body.status, payload, now
    finally:
        connection.close()


def _connect(target: Target, patience: Patience) -> Any:
    try:
        connection = gevent.socket.create_connection(target.address, timeout=patience.connect_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.is_tls:
            context = gevent.ssl.create_default_context()
            return context.wrap_socket(connection, server_hostname=target.address[0])
        return connection
    except ConnectionRefusedError:
        raise Broken(Failure("refused", detail="The connection was refused.")) from None
    except TimeoutError:
        raise Broken(Failure("timed_out", detail=f"No connection within {patience.connect_s:g} s.")) from None
    except OSError as error:
        raise Broken(Failure("unreachable", detail=f"{error}"[:DETAIL_CHARS])) from None


def _send(connection: Any, request: bytes) -> None:
    try:
        connection.sendall(request)
    except OSError as error:
        raise Broken(Failure("cut_off", detail=f"The request could not be sent: {error}.")) from None


def _receive(connection: Any, timeout_s: float) -> tuple[bytes, float]:
    if timeout_s <= 0:
        raise Broken(Failure("timed_out", detail="The answer was not complete in time."))
    connection.settimeout(timeout_s)
    try:
        data: bytes = connection.recv(RECEIVE_BYTES)
    except TimeoutError:
        raise Broken(Failure("timed_out", detail=f"Not a byte within {timeout_s:.3g} s.")) from None
    except OSError as error:
        raise Broken(Failure("cut_off", detail=f"{error}"[:DETAIL_CHARS])) from None
    return data, time.monotonic()
