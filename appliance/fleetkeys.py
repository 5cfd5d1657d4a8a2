"""The keys of the whole fleet, as the inventory gives them to this node: digests, made on the controller.

The file then holds exactly these as the fleet's; keys made on this node are left alone. The document:

    {"keys": [{"id", "digest", "owner", "expires_at"}], "pepper_check": "<64 hex digits>"}

    SyncRefused     the document or the state of the file does not allow it; nothing was changed
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.allowed import describe
from appliance.errors import InvalidValue
from appliance.key import Key, check_owner, pepper_check
from appliance.keyfile import connect, said_clearly
from appliance.keys import KeyStore

DOCUMENT_BYTES_MAX = 1 << 20
LAST_SECOND = 253402300799  # of the year 9999, the last that a date can show

Hex = "{} hex digits in lower case".format
KeyId = Annotated[str, Meta(pattern="^[0-9a-f]{12}$", extra={"allowed": Hex(12)})]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", extra={"allowed": Hex(64)})]
UnixSeconds = Annotated[int, Meta(ge=0, le=LAST_SECOND)]


class SyncRefused(Exception):
    pass


class FleetKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key of the inventory. `expires_at` is in unix seconds, None for a key that does not expire."""

    id: KeyId
    digest: Digest
    owner: str
    expires_at: UnixSeconds | None = None

    def is_row(self, row: Key) -> bool:
        """Whether the file already says this of the key."""
        given = (bytes.fromhex(self.digest), self.owner, self.expires_at, None, None, "fleet")
        return given == (row.digest, row.owner, row.expires_at, row.revoked_at, row.replaced_by, row.source)


class FleetKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The document. `pepper_check` says which pepper the digests were made under; without keys it may be None."""

    keys: Sequence[FleetKey]
    pepper_check: Digest | None = None


@dataclass(frozen=True)
class Changes:
    """What a sync does, as keys by what happens to them; a key that was revoked and comes back is added."""

    added: Sequence[FleetKey]
    changed: Sequence[FleetKey]
    revoked: Sequence[Key]

    def as_dict(self) -> dict[str, Any]:
        kinds: dict[str, Sequence[FleetKey | Key]] = {
            "added": self.added,
            "changed": self.changed,
            "revoked": self.revoked,
        }
        ids = {name: [key.id for key in keys] for name, keys in kinds.items()}
        return {**ids, "owners": {key.id: key.owner for keys in kinds.values() for key in keys}}


def parse(raw: bytes) -> FleetKeys:
    """Read the document.

    Raises: SyncRefused, naming the entry and the field; never with a value that could be a secret.
    """
    if len(raw) > DOCUMENT_BYTES_MAX:
        raise SyncRefused(f"The document is larger than {DOCUMENT_BYTES_MAX // 1024} KiB.")
    try:
        given = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SyncRefused(f"The document is not JSON: {error}.") from error
    entries = _list_of_keys(given)
    document: FleetKeys = _struct(FleetKeys, {**given, "keys": []}, "the document")
    keys = [_key(entry, _name(number, entry)) for number, entry in enumerate(entries, 1)]
    _refuse_twins(keys)
    if keys and document.pepper_check is None:
        raise SyncRefused("pepper_check is missing; digests need it.")
    return msgspec.structs.replace(document, keys=keys)


def preview(document: FleetKeys, path: Path, *, revoke_all: bool = False) -> Changes:
    """What `sync` would do to the file at `path` once the node has the inventory's pepper. Changes nothing.

    Raises: SyncRefused as `sync` does, and when keys made on this node would be lost with their pepper;
      KeyStoreError when the file cannot be read.
    """
    if not path.exists():
        return plan(document, {}, revoke_all=revoke_all)
    with said_clearly(path), closing(connect(path, "rw")) as db:
        rows, check = _rows(db), _pepper_check(db)
    if document.pepper_check is not None and rows and check != bytes.fromhex(document.pepper_check):
        _refuse_loss([row for row in rows.values() if row.source is None and row.revoked_at is None], path)
    return plan(document, rows, revoke_all=revoke_all)


def sync(document: FleetKeys, store: KeyStore, *, revoke_all: bool = False) -> Changes:
    """Make the fleet's keys in the file exactly those of the document, in one transaction that survives a power cut.

    revoke_all: an empty document may revoke keys; otherwise it is taken for a vault that was not read.

    Raises: SyncRefused, StorageFull, KeysUnavailable.
    """
    check = bytes.fromhex(document.pepper_check or "")
    if document.keys and not hmac.compare_digest(check, pepper_check(store.pepper)):
        raise SyncRefused(
            "The keys were digested under another pepper than this node's, so every one would be rejected; "
            "`ansible-playbook ansible/deploy.yml` gives the node vault_pepper, then run keys.yml again."
        )
    with store.db() as db:
        changes = plan(document, _rows(db), revoke_all=revoke_all)
        now = store.now()
        for key in changes.added:
            _write(db, key, now)
        for key in changes.changed:
            _write(db, key, now)
        db.executemany("update api_keys set revoked_at = ? where id = ?", [(now, row.id) for row in changes.revoked])
        return changes


def plan(document: FleetKeys, rows: Mapping[str, Key], *, revoke_all: bool = False) -> Changes:
    """Decide, for each key of the document and each of the fleet's in the file.

    1. Not in the file: add. The very same key made on this node before: adopt, as changed.
    2. An id that another key of this node has: refuse.
    3. In the file as the fleet's, revoked: add again; otherwise different: change; else nothing.
    4. The fleet's in the file and not in the document: revoke. All of them at once: only with `revoke_all`.

    Raises: SyncRefused.
    """
    added, changed = [], []
    for key in document.keys:
        row = rows.get(key.id)
        if row is not None and row.source != "fleet" and row.digest != bytes.fromhex(key.digest):
            raise SyncRefused(
                f"The key {key.id} of {key.owner!r}: another key, made on this node for {row.owner!r}, has this id; "
                "make a new one for the inventory with `appliance keys generate --owner NAME`."
            )
        if row is None or (row.source == "fleet" and row.revoked_at is not None):
            added.append(key)
        elif not key.is_row(row):
            changed.append(key)
    wanted = {key.id for key in document.keys}
    gone = [row for row in rows.values() if row.source == "fleet" and row.revoked_at is None and row.id not in wanted]
    if gone and not document.keys and not revoke_all:
        raise SyncRefused(
            f"The inventory has no keys, yet {len(gone)} of the fleet's work on this node: was the vault with "
            "vault_keys left out? To revoke them all, run keys.yml with -e keys_revoke_all=true (`--revoke-all` here)."
        )
    return Changes(added, changed, gone)


def _write(db: sqlite3.Connection, key: FleetKey, now: int) -> None:
    db.execute(
        """
        insert into api_keys (id, digest, owner, created_at, expires_at, source) values (?, ?, ?, ?, ?, 'fleet')
        on conflict (id) do update set digest = excluded.digest, owner = excluded.owner, source = 'fleet',
            expires_at = excluded.expires_at, revoked_at = null, replaced_by = null
        """,
        (key.id, bytes.fromhex(key.digest), key.owner, now, key.expires_at),
    )


def _rows(db: sqlite3.Connection) -> dict[str, Key]:
    """All keys of the file; one that an older version made has no `source`."""
    columns = {name for _, name, *_ in db.execute("pragma table_info(api_keys)")}
    names = [name for name in Key.__dataclass_fields__ if name in columns]
    if not names:
        return {}
    cursor = db.execute(f"select {', '.join(names)} from api_keys order by created_at, rowid")  # noqa: S608  # our own
    return {row[0]: Key(**dict(zip(names, row, strict=True))) for row in cursor}


def _pepper_check(db: sqlite3.Connection) -> bytes | None:
    if db.execute("select 1 from sqlite_schema where name = 'pepper_check'").fetchone() is None:
        return None
    (check,) = db.execute("select digest from pepper_check").fetchone() or (None,)
    return check


def _refuse_loss(own: Sequence[Key], path: Path) -> None:
    if not own:
        return
    owners = ", ".join(sorted({row.owner for row in own})[:5])
    raise SyncRefused(
        f"{len(own)} keys made on this node (of {owners}) were made under another pepper than the inventory's "
        f"vault_pepper, and all would be rejected. Either make the node's own pepper vault_pepper, or give them up: "
        f"`pi-llm keys revoke ID` each, or stop the service and move {path} away."
    )


def _list_of_keys(given: Any) -> list[Any]:
    if not isinstance(given, dict) or not isinstance(given.get("keys"), list):
        raise SyncRefused('The document is not an object with a list "keys".')
    return list(given["keys"])


def _name(number: int, entry: Any) -> str:
    """An entry as an error names it: by its number, and its owner or id where it has a sane one."""
    for field in ("owner", "id") if isinstance(entry, dict) else ():
        value = entry.get(field)
        if isinstance(value, str) and len(value) <= 100:
            return f"entry {number} ({field} {value!a})"
    return f"entry {number}"


def _key(entry: Any, name: str) -> FleetKey:
    key: FleetKey = _struct(FleetKey, entry, name)
    try:
        check_owner(key.owner)
    except InvalidValue as error:
        raise SyncRefused(f"{name}: {error.detail}") from error
    return key


def _struct(kind: Any, given: Any, name: str) -> Any:
    if not isinstance(given, dict):
        raise SyncRefused(f"{name}: expected an object.")
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    if unknown := sorted(set(given) - set(fields)):
        raise SyncRefused(f"{name}: no such field {unknown[0][:40]!a}; known: {', '.join(fields)}.")
    for field in fields.values():
        if field.name not in given:
            if field.required:
                raise SyncRefused(f"{name}: {field.name} is missing.")
            continue
        try:
            msgspec.convert(given[field.name], field.type)
        except msgspec.ValidationError as error:
            raise SyncRefused(f"{name}: {field.name} must be {describe(field.type)}.") from error
    return msgspec.convert(given, kind)


def _refuse_twins(keys: Sequence[FleetKey]) -> None:
    numbers: dict[str, int] = {}
    for number, key in enumerate(keys, 1):
        if (first := numbers.setdefault(key.id, number)) != number:
            raise SyncRefused(f"entry {number} (owner {key.owner!a}): its id {key.id} is that of entry {first}.")
