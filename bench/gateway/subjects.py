"""What is compared: the engine asked directly, the floor, the appliance; how each is started and asked.

Each runs in its own processes on loopback. Must not know: what is measured.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.fake.handle import PROJECT, FakeHandle
from bench.gateway import processes

MODEL = "qwen2.5:3b"
PROMPT = "Explain gravity in one sentence, so that a child of five understands it."
OPTIONS = {"num_ctx": 4096, "num_thread": 4, "num_batch": 128}
START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Subject:
    """One server to ask.

    pid: of its master process, or 0 when its cost is of no interest. plain: a route that answers at once.
    started_s: from exec to the first 200 of its readiness route.
    """

    name: str
    port: int
    plain: str
    pid: int = 0
    key: str = ""
    started_s: float = 0.0

    def request(self, max_tokens: int) -> bytes:
        """The bytes that ask for a stream of so many tokens."""
        if self.name == "appliance":
            path, body = "/generate", json.dumps({"prompt": PROMPT, "max_tokens": max_tokens})
        else:
            options = {**OPTIONS, "num_predict": max_tokens}
            messages = [{"role": "user", "content": PROMPT}]
            path = "/api/chat"
            body = json.dumps({"model": MODEL, "messages": messages, "stream": True, "options": options})
        key = f"X-API-Key: {self.key}\r\n" if self.key else ""
        return (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{key}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def cpu_ms(self) -> float:
        """CPU time of master and worker so far; 0 for the engine."""
        return processes.cpu_ns(processes.family(self.pid)) / 1e6 if self.pid else 0.0

    def pss_mib(self) -> float:
        return processes.pss_mib(processes.family(self.pid))


class DidNotStart(Exception):
    """A server ended, or was not ready in time; with what it wrote."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def engine_subject(engine: FakeHandle) -> Subject:
    return Subject("engine", engine.port, "/api/version")


@contextmanager
def running_floor(engine: FakeHandle) -> Iterator[Subject]:
    """The floor on the appliance's own gunicorn worker and limits."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", f"127.0.0.1:{port}"]
    command += ["--keep-alive", "5", "--worker-connections", "1000", "--backlog", "256", "--log-level", "warning"]
    command += ["--worker-tmp-dir", "/dev/shm", "--no-control-socket"]  # noqa: S108
    command += ["bench.gateway.floor:app"]
    environment = {**os.environ, "ENGINE_PORT": str(engine.port)}
    with _running(command, environment, PROJECT, port, "/live") as (pid, started_s):
        yield Subject("floor", port, "/live", pid, "", started_s)


@contextmanager
def running_appliance(engine: FakeHandle, slots: int = 4, queue: int = 8) -> Iterator[Subject]:
    """The appliance with keys and queue on, in an empty directory, with a fresh key."""
    port = free_port()
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "OLLAMA_PORT": str(engine.port),
        "OLLAMA_MODEL": MODEL,
        "N_CTX": "4096",
        "MAX_CONCURRENT_REQUESTS": str(slots),
        "MAX_QUEUE_SIZE": str(queue),
        "API_KEYS_DB": "keys.db",
        "LOG_LEVEL": "info",
    }
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as directory:
        environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(PROJECT), **settings}
        appliance = [sys.executable, "-m", "appliance"]
        create = [*appliance, "keys", "create", "--owner", "bench"]
        made = subprocess.run(create, env=environment, cwd=directory, capture_output=True, text=True, check=False)
        if made.returncode:
            raise DidNotStart(f"appliance keys create: {made.stderr}")
        key = made.stdout.strip().split()[-1]
        with _running([*appliance, "serve"], environment, Path(directory), port, "/ready") as (pid, started_s):
            yield Subject("appliance", port, "/live", pid, key, started_s)


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], directory: Path, port: int, ready: str
) -> Iterator[tuple[int, float]]:
    """A server's process; yields its pid and the seconds from exec to the first 200 of `ready`."""
    with tempfile.TemporaryFile() as output:
        begin = time.monotonic()
        process = subprocess.Popen(command, env=environment, cwd=directory, stdout=output, stderr=output)
        try:
            while not _answers_200(port, ready):
                if process.poll() is not None or time.monotonic() - begin > START_TIMEOUT_S:
                    output.seek(0)
                    raise DidNotStart(f"{' '.join(command)}: {output.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.005)
            yield process.pid, time.monotonic() - begin
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers_200(port: int, path: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return sock.recv(4096)[9:12] == b"200"
    except OSError:
        return False
