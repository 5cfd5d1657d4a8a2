"""The SQLite file under the keys: how it is opened, made private, migrated; what goes wrong with it, in words."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from appliance.errors import KeysUnavailable, StorageFull

# What this code reads. A file's `user_version` is the least that its reader must know. Only a migration that older code
# cannot live with raises it, and FORMAT with it; a column that may be null leaves it, for a rolled-back appliance.
FORMAT = 1
BUSY_TIMEOUT_S = 5
ROOM_NEEDED_BYTES = 1 << 20


class KeyStoreError(Exception):
    """The keys cannot be used as things are; the sentence says what to do."""


class DatabaseTooNew(KeyStoreError):
    pass


def _create_api_keys(db: sqlite3.Connection) -> None:
    db.execute(
        """
        create table api_keys (
            id text primary key,
            digest blob not null,
            owner text not null,
            created_at integer not null,
            last_used_at integer,
            revoked_at integer,
            expires_at integer,
            replaced_by text references api_keys (id)
        ) strict
        """
    )


def _create_pepper_check(db: sqlite3.Connection) -> None:
    db.execute("create table pepper_check (only_row integer primary key check (only_row = 1), digest blob) strict")


def _add_source(db: sqlite3.Connection) -> None:
    db.execute("alter table api_keys add column source text")


# In the order of their making. A released one is never edited, renamed or removed: files remember its name.
MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_create_api_keys, _create_pepper_check, _add_source)


def connect(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        # Opened by the main thread at start, then used by one thread of a pool: never by two at once.
        check_same_thread=False,
    )


def write_ahead(connection: sqlite3.Connection) -> None:
    """Set the WAL mode. Of two processes that do so on a new file, SQLite refuses one without any waiting."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
        time.sleep(0.01)


def make_private(path: Path) -> None:
    """Make the file with mode 0600, or tighten it; SQLite gives its -wal and -shm the mode of the file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        # Not opened here: closing any descriptor of a file drops this process's SQLite locks on it.
        for part in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            if part.exists() and stat.S_IMODE(part.stat().st_mode) & 0o077:
                part.chmod(0o600)


def file_id(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@contextmanager
def said_clearly(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a database is opened into one sentence."""
    try:
        yield
    except (sqlite3.Error, OSError, StorageFull, KeysUnavailable) as error:
        first = error.__cause__ or error
        if isinstance(first, sqlite3.Error | OSError) and _is_for_want_of_room(first, path):
            raise KeyStoreError(
                f"The key database {path} cannot be opened: the disk is full. Free some space; SQLite needs a "
                "little beside the file even to read it."
            ) from error
        reason = first.strerror if isinstance(first, OSError) and first.strerror else str(first)
        raise KeyStoreError(
            f"The key database {path} cannot be opened: {reason}. Run this as the user the appliance "
            "runs as, and let API_KEYS_DB name an SQLite file in a directory that exists and can be written."
        ) from error


def as_answer(error: sqlite3.Error | OSError, path: Path) -> StorageFull | KeysUnavailable:
    if _is_for_want_of_room(error, path):
        return StorageFull(
            f"The disk that holds {path} is full, so nothing was written; free some space and try again."
        )
    return KeysUnavailable(
        f"The key database {path} cannot be written now ({error}); nothing was changed.", retry_after_s=5
    )


def _is_for_want_of_room(error: sqlite3.Error | OSError, path: Path) -> bool:
    """SQLite says "full" for the file itself, but only "I/O error" when its -shm finds no room."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code != sqlite3.SQLITE_IOERR:
        return code == sqlite3.SQLITE_FULL
    free = os.statvfs(path.parent)
    return free.f_bavail * free.f_frsize < ROOM_NEEDED_BYTES
