"""kill -9, a disk that is really full, and two processes at once."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import gevent
import pytest

from appliance.errors import Unauthenticated
from appliance.keyring import KeyRing
from appliance.keys import KeyStore
from appliance.pepper import obtain

ISSUES_FOR_EVER = """
import sys
from pathlib import Path
from appliance.keys import KeyStore
from appliance.pepper import obtain

db = Path(sys.argv[1])
print("begins", flush=True)
store = KeyStore(db, obtain(None, None, db), key_limit=10**6)
while True:
    print(store.issue("alice").api_key, flush=True)
"""


def issue_and_die(db: Path, after_s: float) -> list[str]:
    """Return the keys that a process answered before it was killed in the midst of its work."""
    with subprocess.Popen([sys.executable, "-c", ISSUES_FOR_EVER, str(db)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begins\n"
        time.sleep(after_s)
        child.kill()
        lines = child.stdout.read().splitlines(keepends=True)
    return [line.strip() for line in lines if line.endswith("\n")]


def assert_all_work(db: Path, answered: list[str]) -> None:
    ring = KeyRing(KeyStore(db, obtain(None, None, db)))
    for api_key in answered:
        assert ring.verify(api_key).owner == "alice"
    ring.close()
    with closing(sqlite3.connect(db)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("after_ms", [0, 0.3, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25, 40])
def test_kill_9_during_the_first_start_loses_no_key_that_was_answered(tmp_path: Path, after_ms: float) -> None:
    db = tmp_path / "api_keys.db"
    assert_all_work(db, issue_and_die(db, after_ms / 1000))
    assert_all_work(db, issue_and_die(db, 0.02))


def test_kill_9_again_and_again_loses_no_key_that_was_answered(tmp_path: Path) -> None:
    db = tmp_path / "api_keys.db"
    answered: list[str] = []
    for round_ in range(12):
        answered += issue_and_die(db, 0.03 + round_ * 0.0037)
        assert_all_work(db, answered)
    assert answered


FILLS_THE_DISK = """
import os, sqlite3, sys
from contextlib import closing
from pathlib import Path
from appliance.errors import StorageFull
from appliance.keys import KeyStore
from appliance.keyfile import KeyStoreError

disk = Path(sys.argv[1])
store = KeyStore(disk / "api_keys.db", b"a pepper of the tests", key_limit=10**6)
answered = [store.issue("alice").id]
filler = open(disk / "filler", "wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
full = 0
while full < 3:
    try:
        answered.append(store.issue("alice").id)
    except StorageFull:
        full += 1
assert [key.id for key in store.list()] == answered
try:
    store.touch(dict.fromkeys(answered, 1.0))
except StorageFull:
    pass
store.close()
try:
    KeyStore(disk / "api_keys.db", b"a pepper of the tests")
except KeyStoreError as error:
    assert "cannot be opened: the disk is full. Free some space" in str(error), error
filler.truncate(0)
store = KeyStore(disk / "api_keys.db", b"a pepper of the tests", key_limit=10**6)
answered.append(store.issue("alice").id)
assert [key.id for key in store.list()] == answered
store.close()
with closing(sqlite3.connect(disk / "api_keys.db")) as db:
    assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
print("went on with", len(answered))
"""


def test_a_really_full_disk_refuses_keys_and_takes_them_again_when_there_is_room(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    in_own_mounts = [unshare or "unshare", "--user", "--map-root-user", "--mount"]
    mount = 'mount -t tmpfs -o size=512k none "$1"'
    if not unshare or subprocess.run([*in_own_mounts, "sh", "-c", mount, "sh", str(tmp_path)], check=False).returncode:
        pytest.skip("this machine lets us mount no small disk")
    script = f'{mount} && exec "$2" -c "$3" "$1"'
    ended = subprocess.run(
        [*in_own_mounts, "sh", "-c", script, "sh", str(tmp_path), sys.executable, FILLS_THE_DISK],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("went on with")


def appliance_keys(db: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "appliance", "keys", *arguments],
        cwd=db.parent,
        env={**os.environ, "API_KEYS_DB": str(db), "API_KEY_PEPPER": "a pepper of the tests"},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout.strip()


def test_the_command_line_and_a_running_ring_see_each_others_changes(tmp_path: Path) -> None:
    db = tmp_path / "api_keys.db"
    ring = KeyRing(KeyStore(db, b"a pepper of the tests"))
    created = appliance_keys(db, "create", "--owner", "alice")
    assert ring.verify(created).owner == "alice"
    appliance_keys(db, "revoke", created[3:15])
    gevent.sleep(1)  # the promise: within a second
    with pytest.raises(Unauthenticated, match="is revoked"):
        ring.verify(created)
    issued = ring.issue("bob")
    ring.verify(issued.api_key)
    assert issued.id in appliance_keys(db, "list")
    ring.close()


def test_two_first_starts_at_once_both_work(tmp_path: Path) -> None:
    db = tmp_path / "api_keys.db"
    starts = [
        subprocess.Popen(
            [sys.executable, "-m", "appliance", "keys", "create", "--owner", "alice"],
            cwd=tmp_path,
            env={**os.environ, "API_KEYS_DB": str(db)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    ends = [start.communicate() for start in starts]
    assert [start.returncode for start in starts] == [0] * 4, ends
    assert_all_work(db, [stdout.strip() for stdout, _ in ends])
