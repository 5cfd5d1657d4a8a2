"""Runs `appliance engine` as its own process, for tests that need the real one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineProcess:
    """A running embedded engine."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> int:
        """End it with SIGTERM. Returns: its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=30)


@contextmanager
def running_engine(*options: str) -> Iterator[EngineProcess]:
    """The embedded engine on a free port, ready when this returns; stopped at the end."""
    command = [sys.executable, "-m", "appliance", "engine", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first_line = process.stdout.readline()
        found = re.match(r"listening on http://127\.0\.0\.1:(\d+) ", first_line)
        assert found, f"the engine did not start: {first_line!r}"
        engine = EngineProcess(process, int(found[1]))
        try:
            yield engine
        finally:
            if process.poll() is None:
                engine.stop()
