"""Runs the real service for a test, speaks to it over raw sockets, and stops it again.

Nothing in here sleeps for a guessed time: what is waited for is asked again and again until a deadline, which only a
failure ever reaches.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from appliance.keys import KeyStore

PROJECT = Path(__file__).parent.parent
DEADLINE_S = 20.0
POLL_S = 0.01
PEPPER = "a pepper that only the tests know, of no use elsewhere"
LINGER_0 = struct.pack("ii", 1, 0)


class Event(NamedTuple):
    """One server-sent event; a keep-alive comment has the name "ping". `at` is when it arrived (monotonic s)."""

    name: str
    data: dict[str, Any]
    at: float


class Exchange:
    """One request on a connection of its own, sent at once; the answer is read when it is asked for."""

    def __init__(self, port: int, request: bytes, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(DEADLINE_S)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        self.own_port: int = self._socket.getsockname()[1]
        self._file = self._socket.makefile("rb")
        self._head: tuple[int, dict[str, str]] | None = None
        self._json: Any = None
        self.is_whole = False  # a chunked answer has come to its last chunk

    @property
    def status(self) -> int:
        return self._read_head()[0]

    @property
    def headers(self) -> dict[str, str]:
        """By their names in lower case."""
        return self._read_head()[1]

    def json(self) -> Any:
        """The answer's JSON; may be asked again."""
        if self._json is None:
            self._json = json.loads(b"".join(self._payload()))
        return self._json

    def events(self) -> Iterator[Event]:
        """The events as they come; ends with the stream."""
        assert self.status == 200, (self.status, self.json())
        pending = b""
        for piece in self._payload():
            pending += piece
            while b"\n\n" in pending:
                block, pending = pending.split(b"\n\n", 1)
                yield _event(block.decode())
        assert not pending, f"an event without its end: {pending!r}"

    def next(self, name: str) -> Event:
        """The next event of this name; others before it are passed over."""
        return next(event for event in self.events() if event.name == name)

    def following(self) -> Exchange:
        """The same connection, for the answer to its next request."""
        self._head, self._json, self.is_whole = None, None, False
        return self

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """Close the connection, as a client that ends (FIN)."""
        self._file.close()
        self._socket.close()

    def reset(self) -> None:
        """Break the connection off, as a client whose process is killed with unread data (RST)."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.leave()

    def _read_head(self) -> tuple[int, dict[str, str]]:
        if self._head is None:
            status_line = self._file.readline()
            assert status_line.startswith(b"HTTP/1.1 "), f"no status line: {status_line!r}"
            headers = {}
            while (line := self._file.readline().rstrip()) != b"":
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            self._head = int(status_line.split()[1]), headers
        return self._head

    def _payload(self) -> Iterator[bytes]:
        _, headers = self._read_head()
        if headers.get("transfer-encoding") != "chunked":
            yield self._file.read(int(headers["content-length"]))
            return
        size = -1
        while size != 0:
            line = self._file.readline()
            if not line:
                return  # broken off; `is_whole` stays false
            size = int(line, 16)
            data = self._file.read(size)
            self._file.readline()
            if data:
                yield data
        self.is_whole = True


def _event(block: str) -> Event:
    now = time.monotonic()
    if block == ": ping":
        return Event("ping", {}, now)
    name_line, data_line = block.split("\n")
    assert name_line.startswith("event: "), block
    assert data_line.startswith("data: "), block
    return Event(name_line[7:], json.loads(data_line[6:]), now)


def names_of(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.data["token"] for event in events if event.name == "token")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


class Node:
    """One running `appliance serve`, its keys and its log."""

    def __init__(self, folder: Path, settings: dict[str, Any], arguments: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.port = int(settings.get("PORT", 0)) or free_port()
        self.log_path = folder / "appliance.log"
        self.env = environment(folder, {**settings, "PORT": self.port})
        self._store = KeyStore(folder / "api_keys.db", PEPPER.encode())
        self.key = self.make_key("tests")
        self._exchanges: list[Exchange] = []
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "appliance", "serve", *arguments],
                env=self.env,
                cwd=folder,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def make_key(self, owner: str) -> str:
        return str(self._store.issue(owner).api_key)

    def get(self, path: str, **headers: str) -> Answer:
        """Raises: OSError while nothing listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            raw = response.read()
            kind = response.headers.get("Content-Type", "")
            body = json.loads(raw) if kind.startswith("application/json") else raw.decode()
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, body)
        finally:
            connection.close()

    def generate(
        self,
        prompt: str = "Why do apples fall?",
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        trailing: bytes = b"",
        receive_buffer: int | None = None,
        **fields: Any,
    ) -> Exchange:
        """Send POST /generate. `trailing` are bytes pipelined behind it."""
        given = {"X-API-Key": key or self.key, "Content-Type": "application/json", **(headers or {})}
        request = post("/generate", given, json.dumps({"prompt": prompt, **fields}).encode())
        return self.open(request + trailing, receive_buffer)

    def open(self, request: bytes, receive_buffer: int | None = None) -> Exchange:
        exchange = Exchange(self.port, request, receive_buffer)
        self._exchanges.append(exchange)
        return exchange

    def answer(self, **fields: Any) -> list[Event]:
        """All events of one generation."""
        return list(self.generate(**fields).events())

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = self.get("/health").body
        return body

    def ready(self) -> Answer:
        return self.get("/ready")

    def metric(self, line: str) -> float:
        """The value of one line of /metrics, named with its labels; 0 where there is none."""
        for row in self.get("/metrics", X_API_Key=self.key).body.splitlines():
            if row.startswith(line + " "):
                return float(row.rpartition(" ")[2])
        return 0.0

    def worker_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def wait_until_live(self) -> None:
        wait_until(lambda: self._status("/live") == 200, "the service answers", self._check_running)

    def wait_until_ready(self) -> None:
        wait_until(lambda: self._status("/ready") == 200, "the service is ready", self._check_running)

    def wait_until_idle(self) -> None:
        def is_idle() -> bool:
            health = self.health()
            return health["active_requests"] == 0 and health["queue_size"] == 0

        wait_until(is_idle, "no request holds a slot or waits")

    def wait_until_busy(self, running: int = 1, waiting: int = 0) -> None:
        def is_busy() -> bool:
            health = self.health()
            return bool(health["active_requests"] == running and health["queue_size"] == waiting)

        wait_until(is_busy, f"{running} run and {waiting} wait")

    def wait_until_unloaded(self) -> None:
        """What the service believed of the engine is out of date."""
        wait_until(lambda: not self.health()["model_loaded"], "the service knows that the model is gone")

    def close_connections(self) -> None:
        for exchange in self._exchanges:
            exchange.leave()
        self._exchanges.clear()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_for_exit(self) -> int:
        return self.process.wait(timeout=DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM, and the exit status; SIGKILL where that does not help."""
        self.close_connections()
        self._store.close()
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.wait_for_exit()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def command(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run another `appliance` command with this node's settings, and a text for its standard input."""
        return subprocess.run(
            [sys.executable, "-m", "appliance", *arguments],
            env=self.env,
            cwd=self.folder,
            input=given,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def _status(self, path: str) -> int | None:
        try:
            return self.get(path).status
        except OSError:
            return None

    def _check_running(self) -> None:
        status = self.process.poll()
        assert status is None, f"the service ended with {status}:\n{self.log}"


def environment(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """What a service of the tests sees: little of ours, quick pings, and the settings."""
    base: dict[str, Any] = {
        "PATH": os.environ["PATH"],
        "HOME": folder,
        "PYTHONPATH": PROJECT,
        "HOST": "127.0.0.1",
        "API_KEY_PEPPER": PEPPER,
        "SSE_PING_S": 0.2,
        "DRAIN_S": 5,
    }
    return {name: str(value) for name, value in {**base, **settings}.items()}


@contextmanager
def running_node(folder: Path, *, is_awaited: bool = True, **settings: Any) -> Iterator[Node]:
    """The service with these settings, ready unless `is_awaited` is false; at the end it must exit 0."""
    node = Node(folder, settings)
    try:
        if is_awaited:
            node.wait_until_ready()
        yield node
    except BaseException:
        node.stop()
        raise
    assert node.stop() == 0, node.log


def serve_in_vain(folder: Path, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run an `appliance serve` that is expected to refuse its start."""
    return subprocess.run(
        [sys.executable, "-m", "appliance", "serve", *arguments],
        env=environment(folder, settings),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def wait_until(
    is_true: Callable[[], bool], what: str, check: Callable[[], None] = lambda: None, deadline_s: float = DEADLINE_S
) -> None:
    """Ask until the answer is yes. Raises: AssertionError at the deadline, or what `check` raises."""
    ends_at = time.monotonic() + deadline_s
    while not is_true():
        check()
        assert time.monotonic() < ends_at, f"not within {deadline_s:g} s: {what}"
        time.sleep(POLL_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def post(path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: node", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
