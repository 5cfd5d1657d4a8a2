"""A light fake of Ollama's HTTP API on loopback, with knobs: exact delays for benchmarks, faults for tests.

    python -m bench.fake_engine --port 11434 --tokens-per-s 10 --prefill-s 0.5

Owns: what the fake does when. The bytes are bench.ollama_bytes', sockets and deadlines bench.epoll_loop's.
Must not know: the appliance.

It prints one line when it listens, `{"port": …, "control_port": …}`. The control routes answer on both ports,
on the control port also while the engine refuses connections:

    POST /fake/knobs {"tokens_per_s": 10}   change knobs now; running streams keep those they began with
    POST /fake/reset                        the knobs of the command line, nothing seen, listening
    POST /fake/down {"for_s": 2}            refuse connections, reset the open ones; for_s or until /fake/up
    POST /fake/up
    GET  /fake/seen                         counters, and each generation: its body, tokens, end, times

Times named `…_ns` are time.monotonic_ns(), which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import re
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from itertools import cycle
from typing import Any, Literal, NamedTuple

import msgspec

from bench import ollama_bytes as wire
from bench.epoll_loop import FOREVER, READ, ClientGone, Connection, Loop, Steps

Fault = Literal[
    "", "hang_first", "hang", "reset", "close", "no_done", "error", "garbage", "404", "500", "503", "too_long"
]
Text = Literal["words", "time", "emoji", "cjk", "long"]

RUNNER_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the fake does. Every knob is also an option of the command line.

    model, version: what it claims to have and to be.
    present: the model is there; false until it has been pulled.
    loaded: at the start the model is in memory, with whatever load-time options the first request brings.
    load_s: loading, and loading again when load-time options change, takes that long.
    parallel: slots; further requests wait in line without limit, as with Ollama.
    prefill_s: silence before the first record of each answer.
    tokens_per_s: each stream's pace, kept to the schedule start + i / rate; 0 is full speed.
    tokens: of an answer; 0 is as many as num_predict asks for (128 when that is unlimited).
    text: what tokens say. "time" is " <time.monotonic_ns() of sending>", "long" is 10,000 characters.
    fault: what goes wrong, after `after` tokens if in mid-stream. "hang_first" says nothing ever, "hang"
        nothing more, "reset" and "close" die by RST and FIN, "no_done" ends the body without a record with
        `done`, "error" and "garbage" send such a line, the rest answer the status with Ollama's body.
    faults: as many generations have the fault, then it is over; 0 is all.
    error: the message of fault "error" and of fault "500".
    split: "utf8" cuts records inside a character into two HTTP chunks, "line" cuts lines across TCP segments.
    pull_steps, pull_step_s: a pull's progress lines and the time between them.
    pull_error: a pull ends with this error instead of success.
    """

    model: str = "qwen2.5:3b"
    version: str = "0.32.15"
    present: bool = True
    loaded: bool = True
    load_s: float = 0.0
    parallel: int = 4
    prefill_s: float = 0.0
    tokens_per_s: float = 0.0
    tokens: int = 0
    text: Text = "words"
    fault: Fault = ""
    after: int = 3
    faults: int = 0
    error: str = RUNNER_STOPPED
    split: Literal["", "utf8", "line"] = ""
    pull_steps: int = 10
    pull_step_s: float = 0.06
    pull_error: str = ""


class Seen(msgspec.Struct):
    """One generation as the engine saw it.

    ended: "" while it runs, "done", "client_gone", "engine_gone" (after /fake/down) or the fault's name.
    last_token_ns: the sending times of its last LAST_TOKENS_KEPT tokens.
    """

    id: int
    path: str
    body: dict[str, Any]
    received_ns: int
    started_ns: int = 0
    first_token_ns: int = 0
    tokens: int = 0
    last_token_ns: list[int] = []
    ended: str = ""
    ended_ns: int = 0


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Died(Exception):
    """The fake breaks this connection off, as its fault says."""


LOAD_TIME_OPTIONS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
)
INTEGER_OPTIONS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "num_thread",
    "num_predict",
    "num_keep",
    "seed",
    "top_k",
)
LAST_TOKENS_KEPT = 32
SEEN_KEPT = 2048
GO_DURATION = re.compile(r"[-+]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+|0")
ANY_OPTIONS: tuple[Any, ...] = ("any",)

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


class FakeEngine:
    """State of the fake: who runs, who waits, what is loaded, what was seen."""

    def __init__(self, loop: Loop, knobs: Knobs) -> None:
        self.loop = loop
        self.first_knobs = knobs
        self.dates = wire.Dates()
        self.port = 0
        self.is_down = False
        self.running = 0
        self.waiting: deque[Connection] = deque()
        self.reset()

    def reset(self) -> None:
        self.knobs = self.first_knobs
        self.present = self.knobs.present
        self.loaded_with = ANY_OPTIONS if self.knobs.loaded else None
        self.expires_at_unix_s = time.time() + 300
        self.seen: deque[Seen] = deque(maxlen=SEEN_KEPT)
        self.counters = {
            "generations": 0,
            "loads": 0,
            "pulls": 0,
            "connections": 0,
            "peak_running": 0,
            "peak_waiting": 0,
        }
        self.faults_left = self.knobs.faults or FOREVER

    # --- one connection

    def serve(self, connection: Connection) -> Steps:
        """Answer request after request until the client leaves."""
        self.counters["connections"] += 1
        while True:
            request = yield from read_request(connection)
            connection.is_last = request.headers.get("connection", "").lower() == "close"
            try:
                yield from self.answer(connection, request)
            except Died:
                return
            if connection.is_last:
                return

    def answer(self, connection: Connection, request: Request) -> Steps:
        if request.path.startswith("/fake/"):
            yield from self.reply(connection, self.control(request))
        elif not is_local(request.headers.get("host", "")):
            yield from self.reply(connection, wire.head(403, self.date(), length=0))
        elif request.path in ("/api/chat", "/api/generate") and request.method == "POST":
            yield from self.generation(connection, request)
        elif request.path == "/api/pull" and request.method == "POST":
            yield from self.pull(connection, request)
        else:
            data = self.plain(request)
            if request.method == "HEAD":
                data = data[: data.index(b"\r\n\r\n") + 4]
            yield from self.reply(connection, data)

    def date(self) -> str:
        return self.dates.http(time.time_ns())

    def now(self) -> str:
        return self.dates.rfc3339_nano(time.time_ns())

    def json(self, status: int, body: Any) -> bytes:
        return wire.answer(status, self.date(), body)

    def reply(self, connection: Connection, data: bytes) -> Steps:
        """Send an answer, or its head with what follows."""
        yield from connection.write(wire.closing(data) if connection.is_last else data)

    # --- routes that answer at once

    def plain(self, request: Request) -> bytes:
        method = "GET" if request.method == "HEAD" else request.method
        known = {"/": "GET", "/api/version": "GET", "/api/tags": "GET", "/api/ps": "GET"}
        known |= {"/api/show": "POST", "/api/pull": "POST", "/api/chat": "POST", "/api/generate": "POST"}
        if request.path not in known:
            return self.text(404, "404 page not found", "text/plain")
        if method != known[request.path]:
            allow = f"Allow: {'HEAD, GET' if known[request.path] == 'GET' else 'POST'}\r\n"
            return self.text(405, "405 method not allowed", "text/plain", allow)
        if request.path == "/":
            return self.text(200, "Ollama is running")
        if request.path == "/api/show":
            return self.show(request)
        bodies = {"/api/version": self.version, "/api/tags": self.tags, "/api/ps": self.ps}
        return self.json(200, bodies[request.path]())

    def text(self, status: int, text: str, content_type: str = wire.TEXT, extra: str = "") -> bytes:
        return wire.head(status, self.date(), content_type, len(text), extra) + text.encode()

    def version(self) -> dict[str, Any]:
        return {"version": self.knobs.version}

    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": "qwen2",
            "families": ["qwen2"],
            "parameter_size": "3.1B",
            "quantization_level": "Q4_K_M",
        }

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.knobs.model,
            "model": self.knobs.model,
            "size": 1929912432,
            "digest": "357c53fb659c5076de1d65ccb0b397446227b71a42be9d1603d46168015c9e4b",
            "details": self.details(),
        }

    def tags(self) -> dict[str, Any]:
        if not self.present:
            return {"models": []}
        model = self.summary()
        details = {**model.pop("details"), "context_length": 32768, "embedding_length": 2048}
        modified = {"modified_at": "2026-01-02T03:04:05.678901234Z"}
        name = {"name": model.pop("name"), "model": model.pop("model")}
        return {"models": [{**name, **modified, **model, "details": details, "capabilities": ["completion", "tools"]}]}

    def ps(self) -> dict[str, Any]:
        if self.loaded_with is None or self.expires_at_unix_s < time.time():
            return {"models": []}
        expires_at = self.dates.rfc3339_nano(int(self.expires_at_unix_s * 1e9))
        num_ctx = 4096 if self.loaded_with is ANY_OPTIONS else self.loaded_with[0]
        return {"models": [{**self.summary(), "expires_at": expires_at, "size_vram": 0, "context_length": num_ctx}]}

    def show(self, request: Request) -> bytes:
        body = parse(request.body) or {}
        name = body.get("model") or body.get("name") or ""
        if not self.has(name):
            return self.json(404, {"error": f"model '{name}' not found"})
        return self.json(
            200,
            {
                "modelfile": f"# Modelfile of a fake\nFROM {self.knobs.model}\n",
                "template": "{{ .Prompt }}",
                "details": self.details(),
                "model_info": {"general.architecture": "qwen2", "qwen2.context_length": 32768},
                "capabilities": ["completion", "tools"],
                "modified_at": "2026-01-02T03:04:05.678901234Z",
            },
        )

    def has(self, name: str) -> bool:
        return self.present and name in (self.knobs.model, self.knobs.model.removesuffix(":latest"))

    # --- pull

    def pull(self, connection: Connection, request: Request) -> Steps:
        """Progress lines, then the model is there; leaving stops it."""
        knobs, body = self.knobs, parse(request.body) or {}
        self.counters["pulls"] += 1
        total, digest = 1929903008, "sha256:5ee4f07cdb9beadbbb293e85803c569b01bd37ed059d2715faa7bb405f31caa6"
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        for step in range(1, knobs.pull_steps + 1):
            done = total * step // knobs.pull_steps
            lines.append({"status": f"pulling {digest[7:19]}", "digest": digest, "total": total, "completed": done})
        if knobs.pull_error:
            ending: list[dict[str, Any]] = [{"error": knobs.pull_error}]
        else:
            ending = [{"status": s} for s in ("verifying sha256 digest", "writing manifest", "success")]
        if body.get("stream") is False:
            yield time.monotonic() + knobs.pull_steps * knobs.pull_step_s
            self.present = self.present or not knobs.pull_error
            yield from self.reply(connection, self.json(500 if knobs.pull_error else 200, ending[-1]))
            return
        yield from self.reply(connection, wire.head(200, self.date(), wire.NDJSON) + wire.record(lines[0]))
        for line in lines[1:]:
            yield time.monotonic() + knobs.pull_step_s
            yield from connection.write(wire.record(line))
        self.present = self.present or not knobs.pull_error
        for line in ending:
            yield from connection.write(wire.record(line))
        yield from connection.write(wire.LAST_CHUNK)

    # --- chat and generate

    def generation(self, connection: Connection, request: Request) -> Steps:
        """Validate, wait for a slot, load, prefill, stream; and write down how it ended."""
        arrived_ns = time.monotonic_ns()
        body = parse(request.body)
        refusal = self.refusal(request, body)
        if refusal or body is None:
            yield from self.reply(connection, refusal)
            return
        self.counters["generations"] += 1
        seen = Seen(self.counters["generations"], request.path, body, arrived_ns, last_token_ns=[])
        self.seen.append(seen)
        try:
            seen.ended = yield from self.generate(connection, request.path.rpartition("/")[2], seen)
        except ClientGone:
            seen.ended = "engine_gone" if self.is_down else "client_gone"
            raise
        finally:
            seen.ended_ns = connection.gone_ns or time.monotonic_ns()

    def refusal(self, request: Request, body: dict[str, Any] | None) -> bytes:
        """The answer to a request that needs no slot to be refused, or nothing."""
        if not request.body:
            return self.json(400, {"error": "missing request body"})
        if body is None:
            return self.json(400, {"error": "unexpected EOF"})
        name = body.get("model", "")
        if not name and request.path == "/api/chat":
            return self.json(400, {"error": "model is required"})
        if not self.has(name):
            return self.json(404, {"error": f"model '{name}' not found"})
        keep_alive = body.get("keep_alive")
        if isinstance(keep_alive, str) and not GO_DURATION.fullmatch(keep_alive):
            return self.json(400, {"error": f'time: invalid duration "{keep_alive}"'})
        for option, value in (body.get("options") or {}).items():
            if option in INTEGER_OPTIONS and (isinstance(value, bool) or not isinstance(value, int | float)):
                return self.json(500, {"error": f'option "{option}" must be of type integer'})
        return b""

    def generate(self, connection: Connection, route: str, seen: Seen) -> Generator[Any, None, str]:
        knobs, body = self.knobs, seen.body
        prompt = body.get("messages") if route == "chat" else body.get("prompt")
        keep_alive_s = duration_s(body.get("keep_alive"))
        if not prompt and keep_alive_s == 0:
            self.loaded_with = None
            yield from self.reply(connection, self.json(200, self.final(route, "unload")))
            return "done"
        fault = self.take_fault() if prompt else ""
        if fault in ("404", "500", "503"):
            yield from self.reply(connection, self.status_fault(fault, body.get("stream") is not False))
            return fault
        options = {k: v for k, v in (body.get("options") or {}).items() if v is not None}
        yield from self.acquire(connection, load_key(options))
        try:
            seen.started_ns = time.monotonic_ns()
            yield from self.load(load_key(options))
            if not prompt:
                yield from self.reply(connection, self.json(200, self.final(route, "load")))
                return "done"
            answer = Answer(self, connection, route, seen, knobs, options, fault)
            return (yield from answer.run())
        finally:
            self.expires_at_unix_s = time.time() + keep_alive_s
            self.release()

    def final(self, route: str, reason: str, metrics: dict[str, int] | None = None, text: str = "") -> dict[str, Any]:
        return wire.final_record(route, self.knobs.model, self.now(), reason, metrics, text)

    def take_fault(self) -> Fault:
        if not self.knobs.fault or self.faults_left <= 0:
            return ""
        self.faults_left -= 1
        return self.knobs.fault

    def status_fault(self, fault: str, streams: bool) -> bytes:
        if fault == "500":
            return self.run_error(500, self.knobs.error, streams)
        missing = f"model '{self.knobs.model}' not found"
        busy = "server busy, please try again.  maximum pending requests exceeded"
        return self.json(int(fault), {"error": missing if fault == "404" else busy})

    def run_error(self, status: int, message: str, streams: bool) -> bytes:
        """An error of the runner, when nothing of the answer has been sent."""
        if streams:
            return wire.stream_error(status, self.date(), message)
        return self.json(status, {"error": message})

    # --- slots and loading

    def acquire(self, connection: Connection, key: tuple[Any, ...]) -> Steps:
        """Wait in line for a slot; a request with other load-time options waits until nothing runs."""
        self.waiting.append(connection)
        try:
            while self.waiting[0] is not connection or not self.fits(key):
                self.counters["peak_waiting"] = max(self.counters["peak_waiting"], len(self.waiting))
                yield FOREVER
            self.running += 1
            self.counters["peak_running"] = max(self.counters["peak_running"], self.running)
        finally:
            self.waiting.remove(connection)
            self.wake_next()

    def fits(self, key: tuple[Any, ...]) -> bool:
        is_loaded = self.loaded_with in (key, ANY_OPTIONS)
        return self.running < self.knobs.parallel and (is_loaded or self.running == 0)

    def release(self) -> None:
        self.running -= 1
        self.wake_next()

    def wake_next(self) -> None:
        if self.waiting:
            self.loop.wake(self.waiting[0])

    def load(self, key: tuple[Any, ...]) -> Steps:
        if self.loaded_with not in (key, ANY_OPTIONS):
            self.loaded_with = None
            self.counters["loads"] += 1
            yield time.monotonic() + self.knobs.load_s
        self.loaded_with = key
        self.wake_next()

    # --- control

    def control(self, request: Request) -> bytes:
        body = parse(request.body) or {}
        if request.path == "/fake/seen":
            state = {**self.counters, "running": self.running, "waiting": len(self.waiting)}
            return self.json(200, {**state, "requests": [msgspec.structs.asdict(s) for s in self.seen]})
        if request.path == "/fake/knobs":
            return self.turn(body)
        if request.path == "/fake/reset":
            self.up()
            self.reset()
        elif request.path == "/fake/down":
            self.loop.call_at(time.monotonic() + 0.002, lambda: self.down(body.get("for_s")))
        elif request.path == "/fake/up":
            self.up()
        else:
            return self.json(404, {"error": f"no control route {request.path}"})
        return self.json(200, {})

    def turn(self, changes: dict[str, Any]) -> bytes:
        try:
            self.knobs = msgspec.convert({**msgspec.structs.asdict(self.knobs), **changes}, Knobs)
        except msgspec.ValidationError as wrong:
            return self.json(400, {"error": str(wrong)})
        if "present" in changes:
            self.present = self.knobs.present
        if "loaded" in changes:
            self.loaded_with = ANY_OPTIONS if self.knobs.loaded else None
        if changes.keys() & {"fault", "faults"}:
            self.faults_left = self.knobs.faults or FOREVER
        self.wake_next()
        return self.json(200, msgspec.structs.asdict(self.knobs))

    def down(self, for_s: float | None) -> None:
        self.is_down = True
        self.loop.refuse(self.port)
        if for_s is not None:
            self.loop.call_at(time.monotonic() + for_s, self.up)

    def up(self) -> None:
        if self.is_down:
            self.is_down = False
            self.loop.listen(self.port, self.serve)


class Answer:
    """One answer in a slot, from prefill to its end."""

    def __init__(
        self,
        engine: FakeEngine,
        connection: Connection,
        route: str,
        seen: Seen,
        knobs: Knobs,
        options: dict[str, Any],
        fault: str,
    ) -> None:
        self.engine, self.connection, self.route, self.seen = engine, connection, route, seen
        self.knobs, self.fault, self.body = knobs, fault, seen.body
        self.num_ctx = int(options.get("num_ctx", 4096))
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
            yield from self.engine.reply(self.connection, self.too_long())
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
        return self.engine.run_error(400, wire.go_json(inner), self.body.get("stream") is not False)

    def whole(self) -> Generator[Any, None, str]:
        """The answer of `"stream": false`: silence, then one JSON object."""
        begin = time.monotonic()
        texts = texts_of(self.knobs.text)
        if self.knobs.tokens_per_s:
            yield begin + self.length / self.knobs.tokens_per_s
        if self.fault == "error":
            yield from self.engine.reply(self.connection, self.engine.json(500, {"error": self.knobs.error}))
            return "error"
        if self.fault in ("hang", "reset", "close"):
            yield from self.break_off()
        text = "".join(next(texts) for _ in range(self.length))
        self.seen.tokens = self.length
        record = self.engine.final(self.route, self.reason, self.metrics(), text)
        yield from self.engine.reply(self.connection, self.engine.json(200, record))
        return "done"

    def stream(self) -> Generator[Any, None, str]:
        """Token i leaves at start + i / rate; headers go with the first record."""
        head = wire.head(200, self.engine.date(), wire.NDJSON)
        self.header = wire.closing(head) if self.connection.is_last else head
        start, rate, seen = time.monotonic(), self.knobs.tokens_per_s, self.seen
        stops_at = self.knobs.after if self.fault else -1
        texts = texts_of(self.knobs.text)
        for i in range(self.length):
            if i == stops_at and (yield from self.go_wrong()):
                return self.fault
            yield start + i / rate if rate else 0.0
            text = next(texts)
            seen.tokens += 1
            remember(seen, time.monotonic_ns())
            line = wire.token_line(self.route, self.knobs.model, self.engine.now(), text)
            yield from self.send(line)
        if self.fault and stops_at >= self.length and (yield from self.go_wrong()):
            return self.fault
        if rate and self.reason == "stop":
            yield start + self.length / rate
        record = self.engine.final(self.route, self.reason, self.metrics())
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


# --- pure parts


def texts_of(kind: Text) -> Iterator[str]:
    """Endless texts of tokens."""
    if kind == "time":
        return iter(lambda: f" {time.monotonic_ns()}", "")
    return cycle({"words": WORDS, "emoji": EMOJI, "cjk": CJK, "long": ("x" * 10_000,)}[kind])


def remember(seen: Seen, now_ns: int) -> None:
    seen.first_token_ns = seen.first_token_ns or now_ns
    seen.last_token_ns.append(now_ns)
    if len(seen.last_token_ns) > LAST_TOKENS_KEPT:
        del seen.last_token_ns[0]


def inside_a_character(line: bytes) -> int:
    """An index that lies inside the first character of several bytes, or 0."""
    return next((i for i, byte in enumerate(line) if 0x80 <= byte < 0xC0), 0)


def count_prompt_tokens(body: dict[str, Any]) -> int:
    """A token every four characters, and eight for the template."""
    messages = body.get("messages") or []
    texts = [body.get("prompt") or "", body.get("system") or "", *(m.get("content") or "" for m in messages)]
    return 8 + sum(len(text) for text in texts) // 4


def load_key(options: dict[str, Any]) -> tuple[Any, ...]:
    """What makes Ollama load a model again when it changes; num_ctx comes first."""
    return tuple(options.get(name, 4096 if name == "num_ctx" else None) for name in LOAD_TIME_OPTIONS)


def duration_s(keep_alive: Any) -> float:
    """keep_alive as Ollama reads it: seconds, or Go's "1h30m"; negative is for ever."""
    if keep_alive is None:
        return 300.0
    if isinstance(keep_alive, int | float):
        seconds = float(keep_alive)
    else:
        units = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
        seconds = sum(float(n) * units[u] for n, u in re.findall(r"([\d.]+)(ns|us|ms|s|m|h)", keep_alive))
        seconds = -seconds if keep_alive.startswith("-") else seconds
    return 9_223_372_036.0 if seconds < 0 else seconds


def is_local(host: str) -> bool:
    """Whether Ollama on a loopback bind lets this Host header in."""
    name = host.rsplit(":", 1)[0].strip("[]").lower()
    return name in ("", "localhost") or name.startswith("127.") or name.endswith((".localhost", ".local", ".internal"))


def parse(body: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


def read_request(connection: Connection) -> Generator[Any, None, Request]:
    """The next request of a connection; only bodies with Content-Length are known here."""
    received = connection.received
    while (end := received.find(b"\r\n\r\n")) < 0:
        yield READ
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", 0))
    while len(received) < end + 4 + length:
        yield READ
    body = bytes(received[end + 4 : end + 4 + length])
    del received[: end + 4 + length]
    method, path, _ = first.split(" ", 2)
    return Request(method, path.partition("?")[0], headers, body)


# --- the process


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fake_engine", description="A fake Ollama with knobs.")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    parser.add_argument("--control-port", type=int, default=0, help="0 lets the system choose")
    for field in msgspec.structs.fields(Knobs):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            kind = type(field.default)
            parser.add_argument(option, type=kind, default=field.default, metavar=str(field.default) or "NAME")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = vars(parse_arguments(sys.argv[1:] if argv is None else argv))
    port, control_port = arguments.pop("port"), arguments.pop("control_port")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    loop = Loop()
    engine = FakeEngine(loop, msgspec.convert(arguments, Knobs))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    engine.port = loop.listen(port, engine.serve)
    print(
        wire.go_json({"port": engine.port, "control_port": loop.listen(control_port, engine.serve)}),
        flush=True,
    )
    try:
        loop.run()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
