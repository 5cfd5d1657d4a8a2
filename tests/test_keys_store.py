"""The keys on a real SQLite file: what is kept, what is refused, and when a key ends."""

from __future__ import annotations

import logging
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from fake_clock import FakeClock

from appliance import keyfile, keys
from appliance.errors import InvalidValue, KeysUnavailable, StorageFull, TooManyRequests
from appliance.key import Source, parse, pepper_check
from appliance.keyfile import DatabaseTooNew, KeyStoreError
from appliance.keys import KeyNotActive, KeyNotFound, KeyOfFleet, KeyStore, WrongPepper

PEPPER = b"a pepper of the tests"
DAY_S = 86400


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api_keys.db"


@pytest.fixture
def store(path: Path, clock: FakeClock) -> Iterator[KeyStore]:
    store = KeyStore(path, PEPPER, clock=clock, key_limit=3)
    yield store
    store.close()


def test_a_key_reads_pk_id_secret(store: KeyStore) -> None:
    issued = store.issue("alice")
    assert parse(issued.api_key) == (issued.id, issued.api_key[16:])
    assert len(issued.id) == 12


def test_a_key_is_kept_with_its_owner_and_times(store: KeyStore, clock: FakeClock) -> None:
    issued = store.issue("alice", expires_at=clock() + DAY_S)
    (key,) = store.list()
    assert (key.id, key.owner, key.created_at, key.expires_at) == (
        issued.id,
        "alice",
        int(clock()),
        int(clock()) + DAY_S,
    )
    assert key.last_used_at is key.revoked_at is key.replaced_by is None


def test_it_writes_no_secret_anywhere(store: KeyStore, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    issued = store.issue("alice")
    secret = issued.api_key[16:]
    files = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert issued.id.encode() in files
    assert secret.encode() not in files
    assert PEPPER not in files
    assert secret not in caplog.text + repr(issued) + repr(store.list())
    assert "digest" not in repr(store.list())


def test_its_files_are_private_from_their_birth(store: KeyStore, path: Path) -> None:
    store.issue("alice")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"api_keys.db": 0o600, "api_keys.db-shm": 0o600, "api_keys.db-wal": 0o600}


def test_it_tightens_a_file_that_others_can_read(store: KeyStore, path: Path) -> None:
    path.chmod(0o644)
    KeyStore(path, PEPPER).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_fsynced_and_a_time_of_last_use_is_not(store: KeyStore) -> None:
    with store.db() as db:
        assert db.execute("pragma synchronous").fetchone() == (2,)
    with store.db(survives_power_cut=False) as db:
        assert db.execute("pragma synchronous").fetchone() == (1,)


def test_the_connection_waits_for_others_and_checks_references(store: KeyStore) -> None:
    with store.db() as db:
        pragmas = [
            db.execute(f"pragma {name}").fetchone()[0] for name in ("journal_mode", "busy_timeout", "foreign_keys")
        ]
    assert pragmas == ["wal", 5000, 1]


@pytest.mark.parametrize("owner", ["", "   ", "x" * 101, "a\nb", "a\x00", "\x1b[31m", "\ud800", "a\u202eb"])
def test_it_refuses_an_owner_that_a_table_cannot_show(store: KeyStore, owner: str) -> None:
    with pytest.raises(InvalidValue, match=r"^owner: got .* expected 1 to 100 printable") as caught:
        store.issue(owner)
    assert caught.value.extra["field"] == "owner"
    assert store.list() == []


@pytest.mark.parametrize("owner", ["x", "x" * 100, "Zoë Å", "日本語", "'; drop table api_keys; --"])
def test_it_takes_any_name_of_1_to_100_characters(store: KeyStore, owner: str) -> None:
    assert store.issue(owner).owner == owner
    assert store.list()[0].owner == owner


def test_it_refuses_more_active_keys_than_the_limit_and_says_what_to_do(store: KeyStore) -> None:
    first, *_ = [store.issue("alice") for _ in range(3)]
    with pytest.raises(TooManyRequests, match="revoke some with `appliance keys revoke ID`"):
        store.issue("bob")
    store.revoke(first.id)
    assert store.issue("bob").owner == "bob"


def test_expired_keys_do_not_count_against_the_limit(store: KeyStore, clock: FakeClock) -> None:
    for _ in range(3):
        store.issue("alice", expires_at=clock() + 10)
    clock.advance(10)
    assert store.issue("bob").owner == "bob"


def test_a_revoked_key_stays_revoked_at_its_first_time(store: KeyStore, clock: FakeClock) -> None:
    issued = store.issue("alice")
    revoked_at = int(clock())
    store.revoke(issued.id)
    clock.advance(60)
    store.revoke(issued.id)
    assert store.list()[0].revoked_at == revoked_at
    assert store.list()[0].state(clock()) == "revoked"


def test_it_says_that_no_key_has_an_id_without_repeating_a_secret(store: KeyStore) -> None:
    with pytest.raises(KeyNotFound, match="No key has the id 'nix'"):
        store.revoke("nix")
    with pytest.raises(KeyNotFound) as caught:
        store.revoke("pk_0123456789ab_" + "s" * 43)
    assert "sss" not in str(caught.value)


def test_a_key_is_expired_from_its_last_second_on(store: KeyStore, clock: FakeClock) -> None:
    store.issue("alice", expires_at=clock() + 10)
    (key,) = store.list()
    assert [key.state(clock() + 9.9), key.state(clock() + 10)] == ["active", "expired"]


def test_rotate_makes_a_new_key_and_lets_the_old_one_run_out(store: KeyStore, clock: FakeClock) -> None:
    old = store.issue("alice")
    new = store.rotate(old.id, overlap_s=3600)
    before, after = store.list()
    assert (before.id, before.expires_at, before.replaced_by) == (old.id, int(clock()) + 3600, new.id)
    assert (after.id, after.owner, after.expires_at) == (new.id, "alice", None)


def test_rotate_without_overlap_revokes_the_old_key(store: KeyStore, clock: FakeClock) -> None:
    old = store.issue("alice")
    store.rotate(old.id, overlap_s=0)
    assert store.list()[0].state(clock() - DAY_S) == "revoked"


def test_rotate_gives_the_new_key_as_long_a_life_and_the_old_one_no_longer_one(
    store: KeyStore, clock: FakeClock
) -> None:
    old = store.issue("alice", expires_at=clock() + DAY_S)
    clock.advance(DAY_S - 100)
    store.rotate(old.id, overlap_s=3600)
    before, after = store.list()
    assert before.expires_at == int(clock()) + 100
    assert after.expires_at == int(clock()) + DAY_S


def test_rotate_refuses_a_key_that_is_dead_or_was_rotated(store: KeyStore) -> None:
    revoked, rotated = store.issue("alice"), store.issue("bob")
    store.revoke(revoked.id)
    new = store.rotate(rotated.id, overlap_s=60)
    with pytest.raises(KeyNotActive, match="is revoked; make a new one"):
        store.rotate(revoked.id, overlap_s=60)
    with pytest.raises(KeyNotActive, match=f"already rotated; rotate {new.id}"):
        store.rotate(rotated.id, overlap_s=60)
    with pytest.raises(KeyNotFound):
        store.rotate("nix", overlap_s=60)


def test_rotate_works_on_a_full_node(store: KeyStore) -> None:
    issued = [store.issue("alice") for _ in range(3)]
    assert store.rotate(issued[0].id, overlap_s=60).owner == "alice"


def test_the_time_of_last_use_only_moves_forward(store: KeyStore) -> None:
    issued = store.issue("alice")
    store.touch({issued.id: 200.9, "gone": 1.0})
    store.touch({issued.id: 100.0})
    assert store.list()[0].last_used_at == 200


def test_a_wrong_pepper_is_noticed_at_the_start(store: KeyStore, path: Path) -> None:
    store.issue("alice")
    with pytest.raises(WrongPepper, match="give the earlier API_KEY_PEPPER") as caught:
        KeyStore(path, b"an0ther pepper, as long")
    assert "an0ther" not in str(caught.value)


def test_a_database_without_keys_takes_on_a_new_pepper(store: KeyStore, path: Path) -> None:
    other = KeyStore(path, b"another pepper, as long")
    other.issue("alice")
    other.close()
    with pytest.raises(WrongPepper):
        store.issue("bob")
    assert [key.owner for key in store.list()] == ["alice"]


@pytest.mark.parametrize(("source", "is_kept"), [(None, True), ("fleet", False), ("probe", False)])
def test_a_database_takes_on_a_new_pepper_when_no_key_of_its_own_is_lost(
    store: KeyStore, path: Path, source: Source | None, is_kept: bool
) -> None:
    store.revoke(store.issue("revoked long ago").id)
    store.issue("alice", source=source)
    with pytest.raises(WrongPepper) if is_kept else nullcontext():
        KeyStore(path, b"another pepper, as long").close()


def test_only_keys_made_here_count_against_the_limit(store: KeyStore) -> None:
    for _ in range(4):
        with store.db() as db:
            store._insert(db, "alice", None, "fleet")
    assert [store.issue("bob").owner for _ in range(3)] == ["bob"] * 3
    with pytest.raises(TooManyRequests):
        store.issue("bob")


def test_rotate_refuses_a_key_of_the_fleet_and_names_the_inventory(store: KeyStore) -> None:
    issued = store.issue("alice", source="fleet")
    with pytest.raises(KeyOfFleet, match=r"of 'alice' comes from the fleet's inventory; change it in vault_keys"):
        store.rotate(issued.id, overlap_s=60)


def test_migrations_are_recorded_and_run_once(store: KeyStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_a_note(db: sqlite3.Connection) -> None:
        db.execute("alter table api_keys add column note text")

    store.issue("alice")
    monkeypatch.setattr(keys, "MIGRATIONS", (*keys.MIGRATIONS, add_a_note))
    for _ in range(2):
        KeyStore(path, PEPPER).close()
    with store.db() as db:
        names = [name for (name,) in db.execute("select name from migrations order by rowid")]
    assert names == ["_create_api_keys", "_create_pepper_check", "_add_source", "add_a_note"]


def test_a_failed_migration_leaves_nothing_half_done(
    store: KeyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(db: sqlite3.Connection) -> None:
        db.execute("alter table api_keys add column note text")
        db.execute("select * from no_such_table")

    monkeypatch.setattr(keys, "MIGRATIONS", (*keys.MIGRATIONS, break_off))
    with pytest.raises(KeyStoreError, match="no such table"):
        KeyStore(path, PEPPER)
    with store.db() as db:
        assert "note" not in [row[1] for row in db.execute("pragma table_info(api_keys)")]


def open_with_newer(
    path: Path, monkeypatch: pytest.MonkeyPatch, migration: Callable[[sqlite3.Connection], None]
) -> None:
    """What an upgrade does to the file before it is rolled back."""
    with monkeypatch.context() as newer:
        newer.setattr(keys, "MIGRATIONS", (*keys.MIGRATIONS, migration))
        newer.setattr(keys, "FORMAT", keys.FORMAT + 1)
        KeyStore(path, PEPPER).close()


def test_older_code_goes_on_with_a_file_that_a_newer_version_only_added_to(
    store: KeyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_teams(db: sqlite3.Connection) -> None:
        db.execute("alter table api_keys add column team text")
        db.execute("alter table api_keys add column weight integer not null default 1")

    issued = store.issue("alice")
    open_with_newer(path, monkeypatch, add_teams)
    older = KeyStore(path, PEPPER)
    older.revoke(issued.id)
    older.rotate(older.issue("bob").id, overlap_s=60)
    assert sorted(key.owner for key in older.list()) == ["alice", "bob", "bob"]
    open_with_newer(path, monkeypatch, add_teams)  # the upgrade again
    older.close()


def test_a_file_that_a_newer_version_changed_for_good_is_refused(
    store: KeyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split_owners(db: sqlite3.Connection) -> None:
        db.execute("alter table api_keys rename column owner to owner_id")
        db.execute(f"pragma user_version = {keys.FORMAT}")

    open_with_newer(path, monkeypatch, split_owners)
    with pytest.raises(DatabaseTooNew, match=r"newer version .*its format is 2, .* knows 1\); run that version"):
        KeyStore(path, PEPPER)


def test_a_file_from_before_keys_had_a_source_is_brought_up_to_date(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(path)) as db:
        for step in keys.MIGRATIONS[:2]:
            step(db)
        db.execute("create table migrations (name text primary key, applied_at integer) strict")
        db.executemany("insert into migrations values (?, 0)", [(step.__name__,) for step in keys.MIGRATIONS[:2]])
        db.execute("insert into api_keys (id, digest, owner, created_at) values ('0123456789ab', x'00', 'alice', 0)")
        db.execute("insert into pepper_check values (1, ?)", (pepper_check(PEPPER),))
        db.commit()
    store = KeyStore(path, PEPPER)
    assert [(key.owner, key.source) for key in store.list()] == [("alice", None)]
    store.close()


def test_a_file_that_is_no_database_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"this is not a database\n" * 100)
    with pytest.raises(KeyStoreError, match=r"notes.txt cannot be opened: file is not a database\. .*API_KEYS_DB"):
        KeyStore(tmp_path / "notes.txt", PEPPER)


def test_a_directory_that_does_not_exist_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="cannot be opened: No such file or directory"):
        KeyStore(tmp_path / "nowhere" / "api_keys.db", PEPPER)


def test_a_full_disk_leaves_nothing_half_written_and_the_store_goes_on(store: KeyStore) -> None:
    kept = store.issue("alice")
    with store.db() as db:
        (pages,) = db.execute("pragma page_count").fetchone()
        db.execute(f"pragma max_page_count = {pages}")

    def issue_until_full() -> None:
        with store.db() as db:
            db.execute("update api_keys set owner = 'mallory'")
            db.execute("insert into api_keys values ('x', zeroblob(99999), 'x', 0, null, null, null, null, null)")

    with pytest.raises(StorageFull, match=r"disk .* is full, so nothing was written"):
        issue_until_full()
    assert [(key.id, key.owner) for key in store.list()] == [(kept.id, "alice")]
    assert store.issue("bob").owner == "bob"


def test_a_file_that_was_replaced_takes_no_key_that_would_be_lost(store: KeyStore, path: Path) -> None:
    path.rename(path.with_name("moved.db"))
    path.touch()
    with pytest.raises(KeysUnavailable, match="was replaced while the appliance ran; restart it"):
        store.issue("alice")


def test_a_removed_file_takes_no_key_that_would_be_lost(store: KeyStore, path: Path) -> None:
    path.unlink()
    with pytest.raises(KeysUnavailable):
        store.issue("alice")


def test_another_process_that_sets_up_the_file_now_is_waited_for() -> None:
    busy = [sqlite3.OperationalError("database is locked") for _ in range(3)]
    asked: list[str] = []

    class NewFile:
        def execute(self, sql: str) -> None:
            asked.append(sql)
            if len(asked) <= len(busy):
                busy[len(asked) - 1].sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise busy[len(asked) - 1]

    keyfile.write_ahead(NewFile())  # type: ignore[arg-type]
    assert asked == ["pragma journal_mode = wal"] * 4


def test_a_locked_database_is_unavailable_for_now(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfile, "BUSY_TIMEOUT_S", 0.01)
    store, other = KeyStore(path, PEPPER), KeyStore(path, PEPPER)
    with other.db(), pytest.raises(KeysUnavailable, match="database is locked") as caught:
        store.issue("alice")
    assert caught.value.retry_after_s == 5
    assert store.issue("alice").owner == "alice"
    store.close()
    other.close()
