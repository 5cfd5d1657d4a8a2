"""The key that `appliance probe` sends: made by itself, kept beside the database, made again when it does not work."""

from __future__ import annotations

import fcntl
import hmac
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.key import TOKEN_LENGTH, digest, parse
from appliance.keys import KeyStore

OWNER = "probe"
NAME = "probe.key"


def obtain(store: KeyStore) -> str:
    """Return the key in `probe.key`, if it works; otherwise make one, keep it there, and revoke earlier ones.

    Raises: OSError when the file cannot be written; StorageFull, KeysUnavailable.
    """
    path = store.path.with_name(NAME)
    with _alone_in(path.parent):
        kept = _read(path)
        if _works(store, kept):
            return kept
        issued = store.issue(OWNER, source="probe")
        _write(path, issued.api_key)
        for key in store.list():
            if key.source == "probe" and key.revoked_at is None and key.id != issued.id:
                store.revoke(key.id)
        return issued.api_key


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Of two probes at once the second waits, and takes the first one's key."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(TOKEN_LENGTH + 1).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _works(store: KeyStore, token: str) -> bool:
    """Made under this pepper, for the probe, and not revoked."""
    parsed = parse(token)
    if parsed is None:
        return False
    key_id, secret = parsed
    return any(
        key.source == "probe"
        and key.revoked_at is None
        and hmac.compare_digest(key.digest, digest(store.pepper, secret))
        for key in store.list()
        if key.id == key_id
    )


def _write(path: Path, token: str) -> None:
    """Whole or not at all; a power cut that brings the earlier file back costs one more key."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
