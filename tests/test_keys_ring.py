"""What the service asks for each request: judged in memory, true within a second, never a wait for the disk."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gevent
import pytest
from fake_clock import FakeClock

from appliance import keyring
from appliance.errors import KeysUnavailable, StorageFull, TooManyRequests, Unauthenticated
from appliance.key import Key
from appliance.keyfile import KeyStoreError
from appliance.keyring import KeyRing
from appliance.keys import KeyReader, KeyStore

PEPPER = b"a pepper of the tests"


class FaultyReader(KeyReader):
    """Reads the real file; knobs make it fail or hang, `looks` counts."""

    looks = 0
    error: ClassVar[Exception | None] = None
    gate: ClassVar[threading.Event] = threading.Event()

    def read(self) -> dict[str, Key] | None:
        FaultyReader.looks += 1
        assert FaultyReader.gate.wait(10)
        if FaultyReader.error is not None:
            raise FaultyReader.error
        return super().read()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api_keys.db"


@pytest.fixture
def elsewhere(path: Path, clock: FakeClock) -> Iterator[KeyStore]:
    """The store as another process has it open, the command line say."""
    store = KeyStore(path, PEPPER, clock=clock)
    yield store
    store.close()


@pytest.fixture
def ring(path: Path, clock: FakeClock, elsewhere: KeyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyRing]:
    FaultyReader.looks, FaultyReader.error, FaultyReader.gate = 0, None, threading.Event()
    FaultyReader.gate.set()
    monkeypatch.setattr(keyring, "KeyReader", FaultyReader)
    store = KeyStore(path, PEPPER, clock=clock, key_limit=5)
    ring = KeyRing(store, clock=clock, now=clock, sleep=clock.advance)
    yield ring
    FaultyReader.gate.set()
    ring.close()


def refusal(ring: KeyRing, token: str) -> Any:
    with pytest.raises(Unauthenticated) as caught:
        ring.verify(token)
    return caught.value.extra["reason"]


def test_a_key_is_good_at_once_wherever_it_was_made(ring: KeyRing, elsewhere: KeyStore) -> None:
    assert ring.verify(ring.issue("alice").api_key).owner == "alice"
    assert ring.verify(elsewhere.issue("bob").api_key).owner == "bob"


MALFORMED = [
    "",
    "pk_",
    "x" * 59,
    f"pk_0123456789AB_{'s' * 43}",
    f"pk_0123456789ab_{'s' * 42}",
    f"pk_0123456789ab_{'s' * 43}\n",
    f"pk_0123456789ab_{'ä' * 43}",
    f"pk_٠١٢٣٤٥٦٧٨٩ab_{'s' * 43}",
    f"pk_{'1' * 10_240}",
]


@pytest.mark.parametrize("token", MALFORMED)
def test_a_malformed_key_is_refused_before_anything_is_looked_up(ring: KeyRing, clock: FakeClock, token: str) -> None:
    clock.advance(60)
    looks = FaultyReader.looks
    assert refusal(ring, token) == "malformed"
    assert FaultyReader.looks == looks


def test_a_known_id_with_another_secret_is_unknown_whatever_its_state(ring: KeyRing, elsewhere: KeyStore) -> None:
    issued = ring.issue("alice")
    forged = f"pk_{issued.id}_{'s' * 43}"
    assert refusal(ring, forged) == "unknown"
    elsewhere.revoke(issued.id)
    assert refusal(ring, forged) == "unknown"


def test_a_refusal_does_not_repeat_the_key(ring: KeyRing) -> None:
    token = "pk_0123456789ab_" + "s" * 43
    with pytest.raises(Unauthenticated) as caught:
        ring.verify(token)
    assert "sss" not in str(caught.value.as_dict())


def test_a_key_revoked_elsewhere_stops_within_a_second(ring: KeyRing, elsewhere: KeyStore, clock: FakeClock) -> None:
    issued = elsewhere.issue("alice")
    ring.verify(issued.api_key)
    elsewhere.revoke(issued.id)
    clock.advance(0.51)
    assert refusal(ring, issued.api_key) == "revoked"


def test_a_key_that_runs_out_stops_without_any_change_of_the_file(
    ring: KeyRing, elsewhere: KeyStore, clock: FakeClock
) -> None:
    issued = elsewhere.issue("alice", expires_at=clock() + 10)
    clock.advance(9)
    ring.verify(issued.api_key)
    clock.advance(1)
    assert refusal(ring, issued.api_key) == "expired"


def test_both_keys_work_during_the_overlap_of_a_rotation(ring: KeyRing, elsewhere: KeyStore, clock: FakeClock) -> None:
    old = elsewhere.issue("alice")
    new = elsewhere.rotate(old.id, overlap_s=60)
    clock.advance(59)
    assert ring.verify(old.api_key).owner == ring.verify(new.api_key).owner == "alice"
    clock.advance(1)
    assert refusal(ring, old.api_key) == "expired"
    assert ring.verify(new.api_key).id == new.id


def test_it_looks_at_the_file_at_most_every_half_second(ring: KeyRing, clock: FakeClock) -> None:
    issued = ring.issue("alice")
    ring.verify(issued.api_key)
    before = FaultyReader.looks
    for _ in range(20):
        clock.advance(0.1)
        ring.verify(issued.api_key)
    assert 3 <= FaultyReader.looks - before <= 4


def test_nothing_looks_while_nobody_asks(ring: KeyRing, clock: FakeClock) -> None:
    before = FaultyReader.looks
    clock.advance(3600)
    gevent.sleep(0)
    assert FaultyReader.looks == before


def test_concurrent_requests_share_one_look(ring: KeyRing, clock: FakeClock) -> None:
    issued = ring.issue("alice")
    ring.verify(issued.api_key)
    clock.advance(1)
    before = FaultyReader.looks
    FaultyReader.gate.clear()
    asking = [gevent.spawn(ring.verify, issued.api_key) for _ in range(20)]
    gevent.sleep(0)
    FaultyReader.gate.set()
    gevent.joinall(asking, timeout=10, raise_error=True)
    assert FaultyReader.looks - before == 1


def test_the_one_who_began_the_look_may_be_killed(ring: KeyRing, clock: FakeClock) -> None:
    issued = ring.issue("alice")
    clock.advance(1)
    FaultyReader.gate.clear()
    first, second = gevent.spawn(ring.verify, issued.api_key), gevent.spawn(ring.verify, issued.api_key)
    gevent.sleep(0)
    first.kill()
    FaultyReader.gate.set()
    assert second.get(timeout=10).owner == "alice"


def test_a_flood_of_made_up_keys_shares_its_looks(ring: KeyRing) -> None:
    before = FaultyReader.looks
    flood = [gevent.spawn(refusal, ring, f"pk_{number:012x}_{'s' * 43}") for number in range(200)]
    gevent.joinall(flood, timeout=10, raise_error=True)
    assert {asked.value for asked in flood} == {"unknown"}
    assert FaultyReader.looks - before <= 2


def test_looks_for_unknown_keys_keep_a_pause(ring: KeyRing, clock: FakeClock) -> None:
    before, began_at = FaultyReader.looks, clock()
    for number in range(10):
        refusal(ring, f"pk_{number:012x}_{'s' * 43}")
    assert FaultyReader.looks - before <= 1 + (clock() - began_at) / keyring.LOOK_PAUSE_S


def test_it_goes_on_with_what_it_has_when_the_file_cannot_be_read(
    ring: KeyRing, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    issued = ring.issue("alice")
    ring.verify(issued.api_key)
    FaultyReader.error = sqlite3.OperationalError("disk I/O error")
    for _ in range(3):
        clock.advance(1)
        ring.verify(issued.api_key)
    FaultyReader.error = None
    clock.advance(1)
    ring.verify(issued.api_key)
    failed, recovered = [record.getMessage() for record in caplog.records]
    assert "cannot be read (disk I/O error); going on with the 1 keys last read" in failed
    assert "can be read again" in recovered


def test_it_goes_on_when_the_file_is_gone(ring: KeyRing, clock: FakeClock, path: Path) -> None:
    issued = ring.issue("alice")
    ring.verify(issued.api_key)
    path.unlink()
    clock.advance(1)
    assert ring.verify(issued.api_key).owner == "alice"
    with pytest.raises(KeysUnavailable):
        ring.issue("bob")


def test_a_disk_that_hangs_holds_a_request_only_so_long_and_the_next_ones_not_at_all(
    ring: KeyRing, clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = ring.issue("alice")
    ring.verify(issued.api_key)
    monkeypatch.setattr(keyring, "LOOK_TIMEOUT_S", 0.05)
    FaultyReader.gate.clear()
    clock.advance(1)
    before = FaultyReader.looks
    for _ in range(5):
        assert ring.verify(issued.api_key).owner == "alice"
        clock.advance(1)
    assert FaultyReader.looks - before <= 1
    assert [record.getMessage().count("it does not answer") for record in caplog.records] == [1]


def test_a_disk_that_hangs_does_not_stop_the_other_greenlets(ring: KeyRing, clock: FakeClock) -> None:
    issued = ring.issue("alice")
    clock.advance(1)
    FaultyReader.gate.clear()
    asking = gevent.spawn(ring.verify, issued.api_key)
    gevent.sleep(0.01)  # the hub turns, though the look does not end
    assert not asking.ready()
    FaultyReader.gate.set()
    assert asking.get(timeout=10).owner == "alice"


def test_it_writes_the_times_of_last_use_together_and_only_when_something_changed(
    ring: KeyRing, elsewhere: KeyStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[dict[str, float]] = []
    monkeypatch.setattr(ring._store, "touch", touched.append)
    monkeypatch.setattr(keyring, "TOUCH_EVERY_S", 0.01)
    first, second = elsewhere.issue("alice"), elsewhere.issue("bob")
    for issued in (first, second, first):
        ring.verify(issued.api_key)
    assert touched == []
    gevent.sleep(0.1)
    assert touched == [{first.id: clock(), second.id: clock()}]


def test_it_writes_the_times_of_last_use_when_it_closes(ring: KeyRing, elsewhere: KeyStore, clock: FakeClock) -> None:
    ring.verify(elsewhere.issue("alice").api_key)
    ring.close()
    ring.close()
    assert elsewhere.list()[0].last_used_at == int(clock())


def test_times_of_last_use_that_cannot_be_written_are_kept_for_the_next_time(
    ring: KeyRing, elsewhere: KeyStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(used: object) -> None:
        raise StorageFull("The disk is full.")

    ring.verify(elsewhere.issue("alice").api_key)
    with monkeypatch.context() as patch:
        patch.setattr(ring._store, "touch", no_room)
        ring._write_uses()
    ring.close()
    assert elsewhere.list()[0].last_used_at == int(clock())


def test_issuing_passes_errors_on_and_stays_usable(ring: KeyRing, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        ring.issue("alice")
    with pytest.raises(TooManyRequests, match="KEY_LIMIT is 5"):
        ring.issue("bob")
    assert "Traceback" not in capfd.readouterr().err


def test_a_closed_ring_issues_nothing_and_still_judges(ring: KeyRing) -> None:
    issued = ring.issue("alice")
    ring.verify(issued.api_key)
    ring.close()
    with pytest.raises(KeysUnavailable, match="stopping"):
        ring.issue("bob")
    assert ring.verify(issued.api_key).owner == "alice"


def test_only_so_many_wait_for_the_disk_to_issue(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(ring._store, "issue", lambda owner: gate.wait(10))
    waiting = [gevent.spawn(ring.issue, "alice") for _ in range(keyring.ISSUES_WAITING_MAX)]
    gevent.sleep(0)
    with pytest.raises(TooManyRequests, match="Too many keys are being made") as caught:
        ring.issue("bob")
    assert caught.value.retry_after_s == 2
    gate.set()
    assert gevent.joinall(waiting, timeout=10, raise_error=True) == waiting


def test_a_disk_that_hangs_holds_who_wants_a_key_only_so_long(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(ring._store, "issue", lambda owner: gate.wait(10))
    monkeypatch.setattr(keyring, "ISSUE_TIMEOUT_S", 0.01)
    for _ in range(2):
        with pytest.raises(KeysUnavailable, match="does not answer"):
            ring.issue("alice")
    gate.set()


def test_a_writer_that_waits_for_the_disk_does_not_hold_up_a_request(
    ring: KeyRing, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = ring.issue("alice")
    gate = threading.Event()
    monkeypatch.setattr(ring._store, "issue", lambda owner: gate.wait(10))
    slow = gevent.spawn(ring.issue, "bob")
    gevent.sleep(0)
    clock.advance(1)
    assert ring.verify(issued.api_key).owner == "alice"
    assert not slow.ready()
    gate.set()
    slow.join()


def test_it_does_not_start_on_a_file_that_cannot_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "KeyReader", FaultyReader)
    monkeypatch.setattr(FaultyReader, "error", sqlite3.OperationalError("disk I/O error"))
    FaultyReader.gate.set()
    store = KeyStore(path, PEPPER)
    with pytest.raises(KeyStoreError, match="cannot be read: disk I/O error"):
        KeyRing(store)
    store.close()
