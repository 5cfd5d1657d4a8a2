"""Which process runs the demo of a folder, and which processes are its nodes'."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_S = 0.05


class PidFile:
    """Names the demo that runs in a folder: it holds a lock on the file, which ends with it whatever ends it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether this process could take the lock; it has it for as long as the block lasts."""
        with self._path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield True

    def read(self) -> int | None:
        """The demo's process; None where none runs."""
        try:
            with self._path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            text = self._path.read_text().strip()
            return int(text) if text else None  # locked, and not written yet: as if it were not there yet
        return None


def end(pid: int, home: Path, patience_s: float) -> bool:
    """End what an earlier demo left: SIGTERM, and SIGKILL after `patience_s`. Whether there was anything of ours.

    home: the folder that the process works in; a process of this number that works elsewhere is none of ours.
    """
    found = is_ours(pid, home)
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        ends_at = time.monotonic() + wait_s
        if is_ours(pid, home):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        while is_ours(pid, home) and time.monotonic() < ends_at:
            time.sleep(POLL_S)
    return found


def is_ours(pid: int, home: Path) -> bool:
    """Whether the process works in this folder; one that has ended and was not waited for yet works nowhere."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True) == home.resolve()
    except OSError:
        return False
