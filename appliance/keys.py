"""The API keys in their SQLite file: who may use this node, and until when.

Owns every statement about keys; the file itself is keyfile.py's, the form of a key key.py's. It blocks (an SD card can
take a second to fsync), so the service goes through `keyring.KeyRing`; the command line uses it as it is.

A key is `pk_<public id>_<secret>`. The file holds the id and HMAC-SHA256(pepper, secret), never the secret.

    KeyStoreError           the database or the pepper does not allow a start
    ├── DatabaseTooNew      a newer version of the appliance wrote the file
    ├── WrongPepper         the keys in the file were made under another pepper
    └── pepper.PepperError
    KeyNotFound             no key has this id
    KeyNotActive            the key is revoked, expired or already rotated
    KeyOfFleet              the inventory says what this key is
"""

from __future__ import annotations

import hmac
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from appliance.errors import KeysUnavailable, TooManyRequests
from appliance.key import IssuedKey, Key, Source, check_owner, digest, joined, new_parts, pepper_check
from appliance.keyfile import (
    FORMAT,
    MIGRATIONS,
    DatabaseTooNew,
    KeyStoreError,
    as_answer,
    connect,
    file_id,
    make_private,
    said_clearly,
    write_ahead,
)

NO_LIMIT = 2**62
_SELECT = (
    "select id, owner, created_at, last_used_at, revoked_at, expires_at, replaced_by, digest, source from api_keys"
)


class WrongPepper(KeyStoreError):
    pass


class KeyNotFound(Exception):
    pass


class KeyNotActive(Exception):
    pass


class KeyOfFleet(Exception):
    pass


class KeyStore:
    """The keys of one node, for one thread at a time.

    pepper: what the digests are made under; see pepper.py.
    clock: gives unix seconds.
    key_limit: `issue` refuses when so many keys made on this node are active.

    Raises: KeyStoreError when the file cannot be opened, WrongPepper, DatabaseTooNew.
    """

    def __init__(
        self,
        path: Path | str,
        pepper: bytes,
        *,
        clock: Callable[[], float] = time.time,
        key_limit: int = 1000,
    ) -> None:
        self.path = Path(path)
        self.pepper = pepper
        self._clock = clock
        self._key_limit = key_limit
        with said_clearly(self.path):
            make_private(self.path)
            self._connection = connect(self.path, "rw")
            try:
                write_ahead(self._connection)
                self._connection.execute("pragma foreign_keys = on")
                self._file_id = file_id(self.path)
                self._migrate()
                self._claim()
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def db(self, *, survives_power_cut: bool = True) -> Iterator[sqlite3.Connection]:
        """One write transaction: all of it, or nothing.

        survives_power_cut: fsync before it counts as done; otherwise it may be lost, though never torn.

        Raises: StorageFull, KeysUnavailable.
        """
        try:
            if file_id(self.path) != self._file_id:
                raise KeysUnavailable(
                    f"{self.path} was replaced while the appliance ran; restart it to use the new file."
                )
            self._connection.execute(f"pragma synchronous = {'full' if survives_power_cut else 'normal'}")
            self._connection.execute("begin immediate")
            yield self._connection
            self._connection.execute("commit")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            if isinstance(error, sqlite3.Error | OSError):
                raise as_answer(error, self.path) from error
            raise

    def issue(self, owner: str, expires_at: float | None = None, source: Source | None = None) -> IssuedKey:
        """Make a key; when this returns, the key survives a power cut.

        expires_at: unix seconds, or None for a key that does not expire.

        Raises: InvalidValue (the owner's name), TooManyRequests (key_limit), StorageFull, KeysUnavailable.
        """
        check_owner(owner)
        with self.db() as db:
            self._require_own_pepper(db)
            self._require_room(db)
            return self._insert(db, owner, expires_at, source)

    def list(self) -> Sequence[Key]:
        """Every key there ever was, oldest first."""
        with said_clearly(self.path):
            rows = self._connection.execute(f"{_SELECT} order by created_at, rowid")
            return [Key(*row) for row in rows]

    def revoke(self, key_id: str) -> Key:
        """Make a key useless; revoking it again changes nothing. Of the fleet's keys, a sync brings it back.

        Raises: KeyNotFound, StorageFull, KeysUnavailable.
        """
        with self.db() as db:
            cursor = db.execute(
                "update api_keys set revoked_at = coalesce(revoked_at, ?) where id = ?", (self.now(), key_id)
            )
            if cursor.rowcount != 1:
                raise KeyNotFound(_not_found(key_id))
            return Key(*db.execute(f"{_SELECT} where id = ?", (key_id,)).fetchone())

    def rotate(self, key_id: str, overlap_s: float) -> IssuedKey:
        """Give the owner a new key, which works at once, and let the old one run out.

        1. Only an active key that has not been rotated yet; its successor can be rotated in turn.
        2. The new key lives as long from now as the old one was to live from its making.
        3. The old one expires after `overlap_s` seconds, or when it would have anyway; with 0 it is revoked,
           which no step of the clock undoes.

        key_limit does not count here: a node that is full must still be able to change a leaked key.

        Raises: KeyNotFound, KeyNotActive, KeyOfFleet, StorageFull, KeysUnavailable.
        """
        now = self.now()
        with self.db() as db:
            self._require_own_pepper(db)
            old = self._replaceable(db, key_id, now)
            lifetime_s = None if old.expires_at is None else old.expires_at - old.created_at
            new = self._insert(db, old.owner, None if lifetime_s is None else now + lifetime_s)
            self._replace(db, old, new, now, overlap_s)
            return new

    def touch(self, last_used_at: Mapping[str, float]) -> None:
        """Write when keys were last used, {id: unix seconds}, in one transaction."""
        with self.db(survives_power_cut=False) as db:
            db.executemany(
                "update api_keys set last_used_at = max(coalesce(last_used_at, 0), ?) where id = ?",
                [(int(at), key_id) for key_id, at in last_used_at.items()],
            )

    def now(self) -> int:
        return int(self._clock())

    def _insert(
        self, db: sqlite3.Connection, owner: str, expires_at: float | None, source: Source | None = None
    ) -> IssuedKey:
        (key_id, secret), now = new_parts(), self.now()
        until = None if expires_at is None else int(expires_at)
        db.execute(
            "insert into api_keys (id, digest, owner, created_at, expires_at, source) values (?, ?, ?, ?, ?, ?)",
            (key_id, digest(self.pepper, secret), owner, now, until, source),
        )
        return IssuedKey(joined(key_id, secret), key_id, owner, now)

    def _require_room(self, db: sqlite3.Connection) -> None:
        (active,) = db.execute(
            "select count(*) from api_keys"
            " where source is null and revoked_at is null and coalesce(expires_at > ?, true)",
            (self.now(),),
        ).fetchone()
        if active >= self._key_limit:
            raise TooManyRequests(
                f"{active} keys are active and KEY_LIMIT is {self._key_limit}; revoke some with "
                "`appliance keys revoke ID` on the node, or raise KEY_LIMIT."
            )

    def _replaceable(self, db: sqlite3.Connection, key_id: str, now: int) -> Key:
        row = db.execute(f"{_SELECT} where id = ?", (key_id,)).fetchone()
        if row is None:
            raise KeyNotFound(_not_found(key_id))
        key = Key(*row)
        if key.source == "fleet":
            raise KeyOfFleet(
                f"Key {key_id} of {key.owner!r} comes from the fleet's inventory; change it in vault_keys there, and "
                "`ansible-playbook ansible/keys.yml` brings it to every node."
            )
        if (state := key.state(now)) != "active":
            raise KeyNotActive(
                f"Key {key_id} of {key.owner!r} is {state}; make a new one with `appliance keys create --owner NAME`."
            )
        if key.replaced_by is not None:
            raise KeyNotActive(f"Key {key_id} of {key.owner!r} was already rotated; rotate {key.replaced_by}.")
        return key

    def _replace(self, db: sqlite3.Connection, old: Key, new: IssuedKey, now: int, overlap_s: float) -> None:
        until = now + int(overlap_s)
        db.execute(
            "update api_keys set replaced_by = ?, revoked_at = ?,"
            " expires_at = min(coalesce(expires_at, ?), ?) where id = ?",
            (new.id, None if overlap_s > 0 else now, until, until, old.id),
        )

    def _migrate(self) -> None:
        with self.db() as db:
            (needed,) = db.execute("pragma user_version").fetchone()
            if needed > FORMAT:
                raise DatabaseTooNew(
                    f"{self.path} was written by a newer version of the appliance (its format is {needed}, and this "
                    f"version knows {FORMAT}); run that version, or give API_KEYS_DB another file."
                )
            db.execute("create table if not exists migrations (name text primary key, applied_at integer) strict")
            applied = {name for (name,) in db.execute("select name from migrations")}
            for step in MIGRATIONS:
                if step.__name__ not in applied:
                    step(db)
                    db.execute("insert into migrations values (?, ?)", (step.__name__, self.now()))

    def _claim(self) -> None:
        """Refuse a wrong pepper, unless nothing is lost with the old one.

        A file without working keys of this node's own takes on the pepper that it is opened with: the fleet's keys come
        back with the next sync, the probe's with the next probe.
        """
        with self.db() as db:
            (check,) = db.execute("select digest from pepper_check").fetchone() or (None,)
            if check == pepper_check(self.pepper):
                return
            if db.execute("select 1 from api_keys where source is null and revoked_at is null").fetchone() is not None:
                self._require_own_pepper(db)
            db.execute(
                "insert or replace into pepper_check (only_row, digest) values (1, ?)", (pepper_check(self.pepper),)
            )

    def _require_own_pepper(self, db: sqlite3.Connection) -> None:
        row = db.execute("select digest from pepper_check").fetchone()
        if row is None or not hmac.compare_digest(row[0], pepper_check(self.pepper)):
            raise WrongPepper(
                f"The keys in {self.path} were made under another pepper, so every key would be rejected; "
                "give the earlier API_KEY_PEPPER or API_KEY_PEPPER_FILE again, or another API_KEYS_DB."
            )


class KeyReader:
    """All keys of the file, read again only when somebody changed it; for one thread at a time.

    It has its own connection: `data_version` tells of every other one's changes, the own process's too, and a
    writer that waits for the disk does not hold it up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file_id = file_id(path)
        self._version: int | None = None
        self._connection = connect(path, "ro")

    def read(self) -> dict[str, Key] | None:
        """Return {id: Key}, or None when nothing has changed since the last call.

        Raises: sqlite3.Error, OSError when the file cannot be read or is no longer the one that was opened.
        """
        if file_id(self.path) != self._file_id:
            raise OSError(f"{self.path} was replaced; restart the appliance to use the new file")
        # Asked before the rows are: a change in between is then seen twice rather than never.
        (version,) = self._connection.execute("pragma data_version").fetchone()
        if version == self._version:
            return None
        rows = self._connection.execute(_SELECT).fetchall()
        self._version = version
        return {row[0]: Key(*row) for row in rows}

    def close(self) -> None:
        self._connection.close()


def holds_keys(path: Path) -> bool:
    """Whether a database is at `path` and has ever had a key. Makes nothing."""
    if not path.exists():
        return False
    with said_clearly(path), closing(connect(path, "rw")) as db:
        if db.execute("select 1 from sqlite_schema where name = 'api_keys'").fetchone() is None:
            return False
        return db.execute("select 1 from api_keys limit 1").fetchone() is not None


def _not_found(key_id: str) -> str:
    shown = ascii(key_id) if len(key_id) <= 20 else "given"  # a whole key given by mistake is not repeated
    return f"No key has the id {shown}; `appliance keys list` shows all (the id is the 12 digits after pk_)."
