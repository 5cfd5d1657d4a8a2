"""Puts a file in its place whole, or leaves what was there; that survives a crash, a power cut and a full disk."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

SUFFIX = ".part"


def put(data: bytes, path: Path, mode: int = 0o644) -> None:
    """Write a temporary file beside `path`, sync it, rename it, sync the folder.

    mode: of a new file; one that is replaced keeps its own.
    Raises: OSError; then no temporary file is left, unless the disk does not even let it be removed.
    """
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode & 0o777
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    try:
        _write(data, temporary, mode)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _write(data: bytes, temporary: Path, mode: int) -> None:
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(path: Path, to: Path) -> None:
    """Raises: OSError."""
    os.replace(path, to)
    _sync_folder(to.parent)


def remove(path: Path) -> None:
    """Also when it is not there. Raises: OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """A rename or a removal itself survives a power cut only when the folder is synced too."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Temporary files for `path` of processes that were killed. Only while nobody else can be writing."""
    for leftover in path.parent.glob(f".{path.name}.*{SUFFIX}"):
        with suppress(OSError):
            os.unlink(leftover)
