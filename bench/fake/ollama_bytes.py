"""The bytes of Ollama's HTTP answers, as Go's net/http and encoding/json write them.

Owns: status lines, the order of headers, chunks, the order of JSON fields, escapes, time stamps.
Must not know: sockets, clocks (times are passed in), what the fake engine does when.
"""

from __future__ import annotations

import json
import time
from typing import Any

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    499: "status code 499",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
LAST_CHUNK = b"0\r\n\r\n"

_GO_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def go_json(value: Any) -> str:
    """`value` as encoding/json writes it: no spaces, UTF-8 as it is, HTML characters escaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_GO_ESCAPES)


class Dates:
    """Time stamps; the part that changes once a second is kept, since each token carries one."""

    def __init__(self) -> None:
        self._second = -1
        self._rfc3339 = self._http = ""

    def _turn(self, second: int) -> None:
        if second != self._second:
            moment = time.gmtime(second)
            self._rfc3339 = time.strftime("%Y-%m-%dT%H:%M:%S", moment)
            self._http = time.strftime("%a, %d %b %Y %H:%M:%S GMT", moment)
            self._second = second

    def rfc3339_nano(self, unix_ns: int) -> str:
        """Go's RFC3339Nano in UTC: trailing zeros of the fraction are dropped."""
        second, ns = divmod(unix_ns, 1_000_000_000)
        self._turn(second)
        fraction = f".{ns:09d}".rstrip("0").rstrip(".")
        return f"{self._rfc3339}{fraction}Z"

    def http(self, unix_ns: int) -> str:
        self._turn(unix_ns // 1_000_000_000)
        return self._http


def head(status: int, date: str, content_type: str = "", length: int | None = None, extra: str = "") -> bytes:
    """Status line and headers; no `length` means chunked.

    net/http writes the handler's own headers first, sorted, and then its own. `extra` are whole lines that
    sort before Content-Type.
    """
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"HTTP/1.1 {status} {REASONS[status]}\r\n{extra}{kind}Date: {date}\r\n{framing}\r\n\r\n".encode()


def closing(answer: bytes) -> bytes:
    """An answer, or the begin of one, that says it is the connection's last."""
    lines, end, body = answer.partition(b"\r\n\r\n")
    before, coding, after = lines.partition(b"\r\nTransfer-Encoding: chunked")
    return before + b"\r\nConnection: close" + coding + after + end + body


def answer(status: int, date: str, body: Any) -> bytes:
    """A whole JSON answer in one piece."""
    data = go_json(body).encode()
    return head(status, date, JSON, len(data)) + data


def stream_error(status: int, date: str, message: str) -> bytes:
    """The error of a stream that has not begun: framed as the stream would be, without a newline."""
    data = go_json({"error": message}).encode()
    return head(status, date, "application/json") + chunk(data) + LAST_CHUNK


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def line(value: Any) -> bytes:
    return go_json(value).encode() + b"\n"


def record(value: Any) -> bytes:
    """One line of a stream as its own chunk."""
    return chunk(line(value))


def token_line(route: str, model: str, created_at: str, text: str) -> bytes:
    """One record of a stream. `text` is encoded as JSON here.

    route: "chat" or "generate"; they differ in where the text is.
    """
    escaped = go_json(text)
    content = f'"message":{{"role":"assistant","content":{escaped}}}' if route == "chat" else f'"response":{escaped}'
    return f'{{"model":{go_json(model)},"created_at":"{created_at}",{content},"done":false}}\n'.encode()


def final_record(
    route: str,
    model: str,
    created_at: str,
    reason: str,
    metrics: dict[str, int] | None = None,
    text: str = "",
) -> dict[str, Any]:
    """The record with `done`; Go leaves out metrics that are 0."""
    content: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text}} if route == "chat" else {"response": text}
    )
    counts = {name: value for name, value in (metrics or {}).items() if value}
    context = counts.pop("context", None)
    return {
        "model": model,
        "created_at": created_at,
        **content,
        "done": True,
        "done_reason": reason,
        **({"context": list(range(context))} if context else {}),
        **counts,
    }
