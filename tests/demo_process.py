"""Runs `python -m bench.demo` in a copy of what it needs of a clone, for tests."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Demo:
    """A folder with an inventory, and ports of its own."""

    clone: Path
    port: int
    engine_port: int

    @property
    def folder(self) -> Path:
        return self.clone / ".demo"

    def command(self, *arguments: str) -> list[str]:
        places = [] if arguments[0] == "down" else ["--port", str(self.port), "--engine-port", str(self.engine_port)]
        return [sys.executable, "-m", "bench.demo", arguments[0], *places, *arguments[1:]]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.clone,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Its exit status, and what it printed."""
        process = self.start(*arguments)
        printed = process.communicate(timeout=300)[0]
        return process.returncode, printed

    @property
    def processes(self) -> list[str]:
        """The command lines of all that works in the folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = (process / "cwd").resolve(strict=True).is_relative_to(self.clone)
                words = (process / "cmdline").read_bytes().decode().replace("\0", " ")
            except OSError:
                continue
            if is_ours and words:
                found.append(words)
        return found


def new_demo(clone: Path) -> Demo:
    ignored = shutil.ignore_patterns("host_vars")
    shutil.copytree(PROJECT / "inventory", clone / "inventory", symlinks=True, ignore=ignored)
    port, engine_port = free_pairs()
    return Demo(clone, port, engine_port)


def free_pairs() -> list[int]:
    """Two ports of which the next is free as well; below those that the kernel gives to connections."""
    starts = random.sample(range(20000, 30000, 2), 100)
    return [port for port in starts if is_free(port) and is_free(port + 1)][:2]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def running_demo(clone: Path) -> Iterator[Demo]:
    """Both nodes, left running by `make demo-up`; ended at the end."""
    demo = new_demo(clone)
    status, printed = demo.run("up")
    assert status == 0, printed
    try:
        yield demo
    finally:
        demo.run("down")
