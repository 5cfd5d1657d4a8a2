"""The file of a run: one JSON document, written whole or not at all, read in every format that there ever was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench import lock, wholefile
from bench.running.client import Target
from bench.running.header import FORMAT, Header, begun_now

SUFFIX = ".json"
R = TypeVar("R", bound=Header)


class RunFileError(Exception):
    """A run file that cannot be read or written; the message says what to do."""

    may_pass = True


class NewerFormat(RunFileError):
    """Written by a newer bench than this one."""


# Format n to format n + 1, on the plain structure, for every n that was ever written. Format 1 is the first.
Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: dict[int, Migration] = {}


def read(path: Path, shape: type[R]) -> R:
    """The run in this file, of this format or an older one.

    Raises: NewerFormat, RunFileError.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        found = msgspec.json.decode(raw)
        return msgspec.convert(migrated(found, path), shape)
    except msgspec.MsgspecError as error:
        raise RunFileError(f"{path} is no run of bench, or was changed by hand: {error}. Move it away.") from error


def migrated(found: Any, path: Path, migrations: dict[int, Migration] | None = None) -> Any:
    """The structure as this bench would have written it. Raises: NewerFormat, RunFileError."""
    number = found.get("format") if isinstance(found, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise RunFileError(f"{path} is no run of bench: it has no format number.")
    if number > FORMAT:
        raise NewerFormat(
            f"{path} has format {number}, and this bench reads up to {FORMAT}: a newer bench wrote it; update this one."
        )
    for step in range(number, FORMAT):
        found = {**(migrations or MIGRATIONS)[step](found), "format": step + 1}
    return found


def path_of(run: Header, results: Path) -> Path:
    return results / run.node / f"{run.id}{SUFFIX}"


def encode(run: Header) -> bytes:
    return msgspec.json.encode(run) + b"\n"


def save(run: Header, results: Path) -> Path:
    """Raises: RunFileError."""
    path = path_of(run, results)
    write(encode(run), path)
    return path


def write(data: bytes, path: Path) -> None:
    """Put `data` there whole, or leave what was there. Raises: RunFileError; then no temporary file is left either."""
    try:
        wholefile.put(data, path)
    except OSError as error:
        raise _unwritable(path, error.strerror) from error


def remove_leftovers(results: Path, node: str) -> None:
    """Temporary files of a bench that was killed while it wrote. Only while this node is locked."""
    for leftover in (results / node).glob(f".*{wholefile.SUFFIX}"):
        with suppress(OSError):
            leftover.unlink()


def begun(kind: str, session: str, target: Target, results: Path) -> dict[str, Any]:
    """What the header says of a run that begins now on this node."""
    ids = (path.name for path in (results / target.name).glob(f"[0-9]*-*{SUFFIX}"))
    return begun_now(kind, session, target.name, target.url, newest=max(ids, default=""))


def newest(results: Path, node: str, kind: str) -> Path | None:
    """The latest file of a node, of this kind; names begin with the time of their beginning."""
    return max((results / node).glob(f"[0-9]*-{kind}-*{SUFFIX}"), default=None)


@contextmanager
def locked(results: Path, node: str) -> Iterator[None]:
    """Only one bench may measure a node at a time; the lock goes with the process, however that ends.

    Raises: RunFileError.
    """
    path = results / node / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise _unwritable(path, error.strerror) from error
    try:
        with lock.held(path):
            remove_leftovers(results, node)
            yield
    except lock.HeldByAnother as other:
        raise RunFileError(f"another bench measures {node} now ({other}); wait for its end, or stop it.") from None
    except lock.Unlockable as error:
        raise _unwritable(path, str(error)) from error


def _unwritable(path: Path, why: str | None) -> RunFileError:
    return RunFileError(f"{path} cannot be written: {why}; make room, or choose another place with --results.")
