"""One answer of the fake engine: its tokens by the clock, its faults, its end.

Must not know: slots, routes, sockets.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from itertools import cycle
from typing import Any

from bench.fake import ollama_bytes as wire
from bench.fake.epoll_loop import FOREVER, Connection, Steps
from bench.fake.knobs import Knobs, Seen, Text, pace

WORDS = (
    " the",
    " apple",
    " falls",
    " because",
    " the",
    " Earth",
    " pulls",
    " it",
    " down",
    ",",
    " gently",
    ".",
)
EMOJI = " 👩‍🚀", "🍓", "🇨🇿", " ❤️", "👍🏽", " ok"
CJK = "重力", "让", "苹果", "落下", "。", "りんご", "が", "落ちる", "사과"


class Replies:
    """Answers in Ollama's bytes, dated now."""

    def __init__(self) -> None:
        self._dates = wire.Dates()

    def date(self) -> str:
        return self._dates.http(time.time_ns())

    def now(self) -> str:
        return self.at(time.time_ns())

    def at(self, unix_ns: int) -> str:
        return self._dates.rfc3339_nano(unix_ns)

    def json(self, status: int, body: Any) -> bytes:
        return wire.answer(status, self.date(), body)

    def text(self, status: int, text: str, content_type: str = wire.TEXT, extra: str = "") -> bytes:
        return wire.head(status, self.date(), content_type, len(text), extra) + text.encode()

    def run_error(self, status: int, message: str, streams: bool) -> bytes:
        """An error of the runner, when nothing of the answer has been sent."""
        if streams:
            return wire.stream_error(status, self.date(), message)
        return self.json(status, {"error": message})

    def final(
        self, route: str, model: str, reason: str, metrics: dict[str, int] | None = None, text: str = ""
    ) -> dict[str, Any]:
        return wire.final_record(route, model, self.now(), reason, metrics, text)

    def send(self, connection: Connection, data: bytes) -> Steps:
        """Send an answer, or its head with what follows."""
        yield from connection.write(wire.closing(data) if connection.is_last else data)


class Died(Exception):
    """The fake breaks this connection off, as its fault says."""


class Answer:
    """One answer in a slot, from prefill to its end."""

    def __init__(
        self,
        replies: Replies,
        connection: Connection,
        route: str,
        seen: Seen,
        knobs: Knobs,
        options: dict[str, Any],
        fault: str,
    ) -> None:
        self.replies, self.connection, self.route, self.seen = replies, connection, route, seen
        self.knobs, self.fault, self.body = knobs, fault, seen.body
        self.num_ctx = int(options.get("num_ctx", 4096))
        self.rate = pace(knobs, options)
        num_predict = int(options.get("num_predict", -1))
        self.length = knobs.tokens or (num_predict if num_predict > 0 else 128)
        self.reason = "length"
        if knobs.tokens > 0 and (num_predict <= 0 or knobs.tokens < num_predict):
            self.reason = "stop"
        elif num_predict > 0:
            self.length = min(self.length, num_predict)
        self.prompt_tokens = count_prompt_tokens(self.body)
        self.header = b""
        self.begun_ns = time.monotonic_ns()  # the model is loaded

    def run(self) -> Generator[Any, None, str]:
        """The answer; returns how it ended."""
        if self.fault == "hang_first":
            yield FOREVER
        if self.fault == "too_long" or (self.prompt_tokens >= self.num_ctx and self.body.get("truncate") is False):
            yield from self.replies.send(self.connection, self.too_long())
            return "too_long"
        self.prompt_tokens = min(self.prompt_tokens, self.num_ctx - 1)
        if self.knobs.prefill_s:
            yield time.monotonic() + self.knobs.prefill_s
        if self.body.get("stream") is False:
            return (yield from self.whole())
        return (yield from self.stream())

    def too_long(self) -> bytes:
        """llama-server's own error, which Ollama passes on as a string of JSON."""
        inner = {
            "error": {
                "code": 400,
                "message": f"request ({self.prompt_tokens} tokens) exceeds the available context size "
                f"({self.num_ctx} tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": self.prompt_tokens,
                "n_ctx": self.num_ctx,
            }
        }
        return self.replies.run_error(400, wire.go_json(inner), self.body.get("stream") is not False)

    def whole(self) -> Generator[Any, None, str]:
        """The answer of `"stream": false`: silence, then one JSON object."""
        begin = time.monotonic()
        texts = texts_of(self.knobs.text)
        if self.rate:
            yield begin + self.length / self.rate
        if self.fault == "error":
            yield from self.replies.send(self.connection, self.replies.json(500, {"error": self.knobs.error}))
            return "error"
        if self.fault in ("hang", "reset", "close"):
            yield from self.break_off()
        text = "".join(next(texts) for _ in range(self.length))
        self.seen.tokens = self.length
        record = self.replies.final(self.route, self.knobs.model, self.reason, self.metrics(), text)
        yield from self.replies.send(self.connection, self.replies.json(200, record))
        return "done"

    def stream(self) -> Generator[Any, None, str]:
        """Token i leaves at start + i / rate; headers go with the first record."""
        head = wire.head(200, self.replies.date(), wire.NDJSON)
        self.header = wire.closing(head) if self.connection.is_last else head
        start, rate, seen = time.monotonic(), self.rate, self.seen
        stops_at = self.knobs.after if self.fault else -1
        texts = texts_of(self.knobs.text)
        for i in range(self.length):
            if i == stops_at and (yield from self.go_wrong()):
                return self.fault
            yield start + i / rate if rate else 0.0
            text = next(texts)
            seen.remember_token(time.monotonic_ns())
            line = wire.token_line(self.route, self.knobs.model, self.replies.now(), text)
            yield from self.send(line)
        if self.fault and stops_at >= self.length and (yield from self.go_wrong()):
            return self.fault
        if rate and self.reason == "stop":
            yield start + self.length / rate
        record = self.replies.final(self.route, self.knobs.model, self.reason, self.metrics())
        yield from self.send(wire.line(record))
        yield from self.connection.write(wire.LAST_CHUNK)
        return "done"

    def go_wrong(self) -> Generator[Any, None, bool]:
        """The fault of the middle of a stream; true when the answer is over with it."""
        if self.fault == "error":
            yield from self.send(wire.line({"error": self.knobs.error}))
        elif self.fault == "garbage":
            yield from self.send(b'{"model":"qwen2.5:3b","created_at":\x00<html>502 Bad Gateway\xff\n')
            return False
        elif self.fault != "no_done":
            yield from self.break_off()
        if self.header:
            yield from self.connection.write(self.header)
        yield from self.connection.write(wire.LAST_CHUNK)
        return True

    def break_off(self) -> Steps:
        self.seen.ended = self.fault
        if self.fault == "hang":
            yield FOREVER
        if self.fault == "reset":
            self.connection.reset_on_close()
        self.seen.ended_ns = time.monotonic_ns()
        raise Died

    def send(self, line: bytes) -> Steps:
        """One record as one chunk, cut in two where the knob says so."""
        header, self.header = self.header, b""
        if not self.knobs.split:
            yield from self.connection.write(header + wire.chunk(line))
            return
        middle = inside_a_character(line) if self.knobs.split == "utf8" else len(line) // 2
        if self.knobs.split == "utf8" and middle:
            first, second = wire.chunk(line[:middle]), wire.chunk(line[middle:])
        else:
            data = wire.chunk(line)
            first, second = data[: len(data) // 2], data[len(data) // 2 :]
        yield from self.connection.write(header + first)
        yield time.monotonic() + 0.005
        yield from self.connection.write(second)

    def metrics(self) -> dict[str, int]:
        """Counts and durations in ns of the final record."""
        now, seen = time.monotonic_ns(), self.seen
        prefill_ns = int(self.knobs.prefill_s * 1e9) or 1_000_000
        return {
            "context": self.prompt_tokens + seen.tokens if self.route == "generate" else 0,
            "total_duration": now - seen.received_ns,
            "load_duration": max(1, self.begun_ns - seen.received_ns),
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": prefill_ns,
            "eval_count": seen.tokens,
            "eval_duration": max(1, now - (seen.first_token_ns or now)),
        }


def texts_of(kind: Text) -> Iterator[str]:
    """Endless texts of tokens."""
    if kind == "time":
        return iter(lambda: f" {time.monotonic_ns()}", "")
    return cycle({"words": WORDS, "emoji": EMOJI, "cjk": CJK, "long": ("x" * 10_000,)}[kind])


def inside_a_character(line: bytes) -> int:
    """An index that lies inside the first character of several bytes, or 0."""
    return next((i for i, byte in enumerate(line) if 0x80 <= byte < 0xC0), 0)


def count_prompt_tokens(body: dict[str, Any]) -> int:
    """A token every four characters, and eight for the template."""
    messages = body.get("messages") or []
    texts = [body.get("prompt") or "", body.get("system") or "", *(m.get("content") or "" for m in messages)]
    return 8 + sum(len(text) for text in texts) // 4
