"""A light fake of Ollama's HTTP API on loopback, with knobs: exact delays for benchmarks, faults for tests.

    python -m bench.fake.engine --port 11434 --tokens-per-s 10 --prefill-s 0.5

Owns: what the fake does when. The bytes are bench.fake.ollama_bytes', sockets and deadlines bench.fake.epoll_loop's.
Must not know: the appliance.

It prints one line when it listens, `{"port": …, "control_port": …}`. The control routes answer on both ports,
on the control port also while the engine refuses connections:

    POST /fake/knobs {"tokens_per_s": 10}   change knobs now; running streams keep those they began with
    POST /fake/reset                        the knobs of the command line, nothing seen, listening
    POST /fake/down {"for_s": 2}            refuse connections, reset the open ones; for_s or until /fake/up
    POST /fake/up
    GET  /fake/state                        counters: connections, generations, running, waiting, loads, peaks …
    GET  /fake/seen {"last": 10}            the same, and the last generations: body, tokens, end, times

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
from collections.abc import Generator
from typing import Any, NamedTuple

import msgspec

from bench.fake import ollama_bytes as wire
from bench.fake.answer import Answer, Died, Replies
from bench.fake.epoll_loop import FOREVER, READ, ClientGone, Connection, Loop, Steps
from bench.fake.knobs import Fault, Knobs, Seen, is_refused
from bench.fake.slots import ANY_OPTIONS, Slots, load_key

INTEGER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "num_thread", "num_predict", "num_keep", "seed", "top_k")
SEEN_KEPT = 2048
GO_DURATION = re.compile(r"[-+]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+|0")


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FakeEngine:
    """State of the fake: who runs, who waits, what is loaded, what was seen."""

    def __init__(self, loop: Loop, knobs: Knobs) -> None:
        self.loop = loop
        self.first_knobs = knobs
        self.replies = Replies()
        self.slots = Slots(loop)
        self.port = 0
        self.is_down = False
        self.reset()

    def reset(self) -> None:
        self.set_knobs(self.first_knobs)
        self.present = self.knobs.present
        self.slots.loaded_with = ANY_OPTIONS if self.knobs.loaded else None
        self.slots.forget()
        self.expires_at_unix_s = time.time() + 300
        self.seen: deque[Seen] = deque(maxlen=SEEN_KEPT)
        self.counters = {"connections": 0, "generations": 0, "pulls": 0}
        self.faults_left = self.knobs.faults or FOREVER

    def set_knobs(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self.slots.parallel, self.slots.load_s = knobs.parallel, knobs.load_s
        self.slots.wake_next()

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
            yield from self.replies.send(connection, self.control(request))
        elif not is_local(request.headers.get("host", "")):
            yield from self.replies.send(connection, wire.head(403, self.replies.date(), length=0))
        elif request.path in ("/api/chat", "/api/generate") and request.method == "POST":
            yield from self.generation(connection, request)
        elif request.path == "/api/pull" and request.method == "POST":
            yield from self.pull(connection, request)
        else:
            data = self.plain(request)
            if request.method == "HEAD":
                data = data[: data.index(b"\r\n\r\n") + 4]
            yield from self.replies.send(connection, data)

    # --- routes that answer at once

    def plain(self, request: Request) -> bytes:
        method = "GET" if request.method == "HEAD" else request.method
        known = {"/": "GET", "/api/version": "GET", "/api/tags": "GET", "/api/ps": "GET"}
        known |= {"/api/show": "POST", "/api/pull": "POST", "/api/chat": "POST", "/api/generate": "POST"}
        if request.path not in known:
            return self.replies.text(404, "404 page not found", "text/plain")
        if method != known[request.path]:
            allow = f"Allow: {'HEAD, GET' if known[request.path] == 'GET' else 'POST'}\r\n"
            return self.replies.text(405, "405 method not allowed", "text/plain", allow)
        if request.path == "/":
            return self.replies.text(200, "Ollama is running")
        if request.path == "/api/show":
            return self.show(request)
        bodies = {"/api/version": self.version, "/api/tags": self.tags, "/api/ps": self.ps}
        return self.replies.json(200, bodies[request.path]())

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
        if self.slots.loaded_with is None or self.expires_at_unix_s < time.time():
            return {"models": []}
        expires_at = self.replies.at(int(self.expires_at_unix_s * 1e9))
        num_ctx = 4096 if self.slots.loaded_with is ANY_OPTIONS else self.slots.loaded_with[0]
        return {"models": [{**self.summary(), "expires_at": expires_at, "size_vram": 0, "context_length": num_ctx}]}

    def show(self, request: Request) -> bytes:
        body = parse(request.body) or {}
        name = body.get("model") or body.get("name") or ""
        if not self.has(name):
            return self.replies.json(404, {"error": f"model '{name}' not found"})
        return self.replies.json(
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
            yield from self.replies.send(connection, self.replies.json(500 if knobs.pull_error else 200, ending[-1]))
            return
        yield from self.replies.send(
            connection, wire.head(200, self.replies.date(), wire.NDJSON) + wire.record(lines[0])
        )
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
            yield from self.replies.send(connection, refusal)
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
            return self.replies.json(400, {"error": "missing request body"})
        if body is None:
            return self.replies.json(400, {"error": "unexpected EOF"})
        name = body.get("model", "")
        if not name and request.path == "/api/chat":
            return self.replies.json(400, {"error": "model is required"})
        if not self.has(name):
            return self.replies.json(404, {"error": f"model '{name}' not found"})
        keep_alive = body.get("keep_alive")
        if isinstance(keep_alive, str) and not GO_DURATION.fullmatch(keep_alive):
            return self.replies.json(400, {"error": f'time: invalid duration "{keep_alive}"'})
        for option, value in (body.get("options") or {}).items():
            if option in INTEGER_OPTIONS and (isinstance(value, bool) or not isinstance(value, int | float)):
                return self.replies.json(500, {"error": f'option "{option}" must be of type integer'})
        return b""

    def generate(self, connection: Connection, route: str, seen: Seen) -> Generator[Any, None, str]:
        knobs, body = self.knobs, seen.body
        prompt = body.get("messages") if route == "chat" else body.get("prompt")
        keep_alive_s = duration_s(body.get("keep_alive"))
        if not prompt and keep_alive_s == 0:
            self.slots.loaded_with = None
            yield from self.replies.send(
                connection, self.replies.json(200, self.replies.final(route, knobs.model, "unload"))
            )
            return "done"
        options = {k: v for k, v in (body.get("options") or {}).items() if v is not None}
        fault = ("500" if is_refused(knobs, options) else self.take_fault()) if prompt else ""
        if fault in ("404", "500", "503"):
            yield from self.replies.send(connection, self.status_fault(fault, body.get("stream") is not False))
            return fault
        yield from self.slots.acquire(connection, load_key(options))
        try:
            seen.started_ns = time.monotonic_ns()
            yield from self.slots.load(load_key(options))
            if not prompt:
                yield from self.replies.send(
                    connection, self.replies.json(200, self.replies.final(route, knobs.model, "load"))
                )
                return "done"
            answer = Answer(self.replies, connection, route, seen, knobs, options, fault)
            return (yield from answer.run())
        finally:
            self.expires_at_unix_s = time.time() + keep_alive_s
            self.slots.release()

    def take_fault(self) -> Fault:
        if not self.knobs.fault or self.faults_left <= 0:
            return ""
        self.faults_left -= 1
        return self.knobs.fault

    def status_fault(self, fault: str, streams: bool) -> bytes:
        if fault == "500":
            return self.replies.run_error(500, self.knobs.error, streams)
        missing = f"model '{self.knobs.model}' not found"
        busy = "server busy, please try again.  maximum pending requests exceeded"
        return self.replies.json(int(fault), {"error": missing if fault == "404" else busy})

    # --- control

    def control(self, request: Request) -> bytes:
        body = parse(request.body) or {}
        state = {**self.counters, **self.slots.state()}
        if request.path == "/fake/state":
            return self.replies.json(200, state)
        if request.path == "/fake/seen":
            last = list(self.seen)[-int(body.get("last", SEEN_KEPT)) :]
            return self.replies.json(200, {**state, "requests": [msgspec.structs.asdict(each) for each in last]})
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
            return self.replies.json(404, {"error": f"no control route {request.path}"})
        return self.replies.json(200, {})

    def turn(self, changes: dict[str, Any]) -> bytes:
        try:
            self.set_knobs(msgspec.convert({**msgspec.structs.asdict(self.knobs), **changes}, Knobs))
        except msgspec.ValidationError as wrong:
            return self.replies.json(400, {"error": str(wrong)})
        if "present" in changes:
            self.present = self.knobs.present
        if "loaded" in changes:
            self.slots.loaded_with = ANY_OPTIONS if self.knobs.loaded else None
        if changes.keys() & {"fault", "faults"}:
            self.faults_left = self.knobs.faults or FOREVER
        return self.replies.json(200, msgspec.structs.asdict(self.knobs))

    def down(self, for_s: float | None) -> None:
        self.is_down = True
        self.loop.refuse(self.port)
        if for_s is not None:
            self.loop.call_at(time.monotonic() + for_s, self.up)

    def up(self) -> None:
        if self.is_down:
            self.is_down = False
            self.loop.listen(self.port, self.serve)


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
    parser = argparse.ArgumentParser(prog="python -m bench.fake.engine", description="A fake Ollama with knobs.")
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
