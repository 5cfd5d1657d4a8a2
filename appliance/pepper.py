"""Where the pepper comes from: the secret without which the stored digests of the keys are useless.

Owns the file of the pepper beside the database. Never logs, prints or raises with the value in it.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from appliance.config import PEPPER_BYTES_MAX, PEPPER_BYTES_MIN
from appliance.keyfile import KeyStoreError
from appliance.keys import holds_keys

log = logging.getLogger(__name__)


class PepperError(KeyStoreError):
    pass


def obtain(pepper: str | None, pepper_file: str | None, db: Path) -> bytes:
    """Return the pepper of the keys in `db`.

    1. API_KEY_PEPPER and API_KEY_PEPPER_FILE together: refuse, one of them is a mistake.
    2. Either one: that; white space around it does not count.
    3. Neither: what `<db>.pepper` holds.
    4. No such file and keys in the database: refuse, for a new pepper would reject every key.
    5. Otherwise make one at random, in `<db>.pepper` with mode 0600, and say so once in the log.

    Raises: PepperError (1, 4, too short, not readable), KeyStoreError (the database cannot be read).
    """
    if pepper is not None and pepper_file is not None:
        raise PepperError("API_KEY_PEPPER and API_KEY_PEPPER_FILE are both given; keep one of them.")
    if pepper is not None:
        return _checked(pepper.encode("utf-8", "surrogateescape"), "API_KEY_PEPPER")
    if pepper_file is not None:
        return _read(Path(pepper_file), f"API_KEY_PEPPER_FILE {pepper_file}")
    beside = Path(f"{db}.pepper")
    if not beside.exists():
        # Asked again after the database was: another process may be making both at this moment, this file
        # first.
        if holds_keys(db) and not beside.exists():
            raise PepperError(
                f"{db} holds keys, but their pepper {beside} is missing, and under a new one every key would "
                "be rejected; bring the file back, or give the pepper as API_KEY_PEPPER or "
                f"API_KEY_PEPPER_FILE, or move {db} away and make new keys."
            )
        _make(beside)
    return _read(beside, f"the pepper {beside}")


def _checked(value: bytes, name: str) -> bytes:
    value = value.strip()
    if len(value) < PEPPER_BYTES_MIN:
        raise PepperError(
            f"{name} has {len(value)} bytes; a pepper has at least {PEPPER_BYTES_MIN}: "
            "`openssl rand -hex 32` makes one."
        )
    if len(value) > PEPPER_BYTES_MAX:
        raise PepperError(f"{name} is longer than {PEPPER_BYTES_MAX} bytes; `openssl rand -hex 32` makes a good one.")
    return value


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            value = file.read(PEPPER_BYTES_MAX + 2)
    except OSError as error:
        raise PepperError(f"{name} cannot be read: {error.strerror}.") from error
    if mode & 0o007:
        log.warning("%s can be read by every user of this machine (mode %04o); chmod 600 it.", name, mode)
    return _checked(value, name)


def _make(path: Path) -> None:
    """Make the file whole or not at all: written and fsynced under another name, then linked to its own.

    A link fails where a rename would overwrite: of two processes that start at once, both take the first
    one's.
    """
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600, O_EXCL
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            is_ours = _link(draft, path)
        finally:
            os.unlink(draft)
        _fsync_directory(path.parent)
    except OSError as error:
        raise PepperError(
            f"No pepper is given, and {path} cannot be made: {error.strerror}. Let API_KEYS_DB name a file "
            "in a directory that exists and can be written, or give API_KEY_PEPPER_FILE."
        ) from error
    if is_ours:
        log.warning("Made the pepper of the API keys, %s; back it up, without it no key works.", path.absolute())


def _link(draft: str, path: Path) -> bool:
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    return True


def _fsync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
