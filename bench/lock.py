"""A lock on a file or a folder that goes with its process, however that ends, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCKS = Path("/proc/locks")


class HeldByAnother(Exception):
    """Somebody else has it; the message names the process, where the machine tells."""


class Unlockable(Exception):
    """It cannot be opened or locked; the message is the system's."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Raises: HeldByAnother, Unlockable."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unlockable(error.strerror) from error
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _holder(handle)
        raise HeldByAnother(f"process {pid}" if pid else "in another process") from None
    except OSError as error:
        raise Unlockable(error.strerror) from error


def _holder(handle: int) -> int | None:
    """The process that has the lock, by the kernel's table: `1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF`."""
    inode = str(os.fstat(handle).st_ino)
    with suppress(OSError):
        for line in LOCKS.read_text().splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5].rpartition(":")[2] == inode and int(words[4]) > 0:
                return int(words[4])
    return None
