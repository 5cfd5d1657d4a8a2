"""Starts a fake engine in its own process and steers it.

with running_fake_engine(tokens_per_s=10) as engine:
    engine.turn(fault="hang", after=2)
    …
    engine.seen()["requests"][-1]["ended"]
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]


class FakeHandle:
    """The control routes of one fake engine. `port` is where it speaks Ollama, `pid` its process."""

    def __init__(self, port: int, control_port: int, pid: int) -> None:
        self.port, self.control_port, self.pid = port, control_port, pid

    def turn(self, **knobs: Any) -> dict[str, Any]:
        """Change knobs; returns all of them. Raises ValueError when one is unknown or wrong."""
        return self._ask("POST", "/fake/knobs", knobs)

    def reset(self) -> None:
        self._ask("POST", "/fake/reset", {})

    def go_down(self, for_s: float | None = None) -> None:
        """Refuse connections and reset the open ones, for so many seconds or until `come_up`."""
        self._ask("POST", "/fake/down", {} if for_s is None else {"for_s": for_s})

    def come_up(self) -> None:
        self._ask("POST", "/fake/up", {})

    def state(self) -> dict[str, int]:
        """Counters, without the requests: light enough to ask often."""
        return self._ask("GET", "/fake/state")

    def seen(self, last: int | None = None) -> dict[str, Any]:
        """Counters and `requests`, each a bench.fake.knobs.Seen; all that are kept, or the last ones."""
        return self._ask("GET", "/fake/seen", {} if last is None else {"last": last})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.control_port, timeout=10)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(answer["error"])
        return answer


@contextmanager
def running_fake_engine(port: int = 0, **knobs: Any) -> Iterator[FakeHandle]:
    """A fake engine with these knobs, stopped at the end. `port` 0 lets the system choose."""
    command = [sys.executable, "-m", "bench.fake.engine", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        try:
            ports = json.loads(process.stdout.readline()) if process.stdout else {}
            handle = FakeHandle(ports["port"], ports["control_port"], process.pid)
            if knobs:
                handle.turn(**knobs)
            yield handle
        finally:
            process.terminate()
