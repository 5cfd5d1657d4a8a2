"""The keys as the service asks for them: in memory, never a wait for the disk on gevent's hub.

Owns the table of keys in memory, how fresh it is, and the times of last use that are not written yet. Must
not know HTTP or SQL; the file is keys.py's, and two native threads of gevent's pools touch it: one looks, one
writes.
"""

from __future__ import annotations

import hmac
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any, cast

import gevent
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from appliance.errors import ApplianceError, KeysUnavailable, TooManyRequests, Unauthenticated
from appliance.key import IssuedKey, Key, digest, parse
from appliance.keyfile import KeyStoreError
from appliance.keys import KeyReader, KeyStore

FRESH_S = 0.5
LOOK_PAUSE_S = 0.05
LOOK_TIMEOUT_S = 2.0
TOUCH_EVERY_S = 60.0
CLOSE_TIMEOUT_S = 5.0
ISSUE_TIMEOUT_S = 20.0
ISSUES_WAITING_MAX = 8

_NOBODYS_DIGEST = bytes(32)
_REMEDY = "`appliance keys create --owner NAME` on the node makes a new one"

Attempt = tuple[Any, Exception | None]

log = logging.getLogger(__name__)


class KeyRing:
    """Judges keys for every request; made in the thread whose hub serves, which then alone calls it.

    store: opened and not used by anybody else from now on; `close` closes it.
    clock: a monotonic clock in seconds, for how fresh the table is.
    now: unix seconds, for what has expired.
    sleep: gives way to the other greenlets for some seconds.

    Raises: KeyStoreError when the keys cannot be read at start.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Any] = gevent.sleep,
    ) -> None:
        self._store = store
        self._pepper = store.pepper
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._reader_thread = ThreadPool(1)
        self._writer_thread = ThreadPool(1)
        self._reader, self._keys = _open(store)
        self._true_as_of = clock()
        self._look: AsyncResult[Attempt] | None = None
        self._look_began_at = self._true_as_of
        self._failing = False
        self._used: dict[str, float] = {}
        self._touch_timer: gevent.Greenlet[..., None] | None = None
        self._issues_waiting = 0
        self._closed = False

    def verify(self, token: str) -> Key:
        """Return the key that `token` is, if it is valid now.

        1. It has not the form of a key: refuse before anything is looked up or computed.
        2. The table is older than FRESH_S: have the file looked at, all who wait share one look.
        3. An id that is not in the table: look once more, for the key may have been made a moment ago. Looks
           keep LOOK_PAUSE_S apart, so made-up keys wait together and cost the disk nothing.
        4. Compare the digests, in constant time and also for an id that nobody has.
        5. Only who knows the secret is told that the key is revoked or expired.

        Raises: Unauthenticated.
        """
        parsed = parse(token)
        if parsed is None:
            raise Unauthenticated(
                "The API key is malformed; it reads pk_<12 hex digits>_<43 characters>.", reason="malformed"
            )
        key_id, secret = parsed
        arrived_at = self._clock()
        self._see(arrived_at - FRESH_S)
        if key_id not in self._keys:
            self._see(arrived_at)
        key = self._keys.get(key_id)
        expected = _NOBODYS_DIGEST if key is None else key.digest
        if not hmac.compare_digest(digest(self._pepper, secret), expected) or key is None:
            raise Unauthenticated(f"The API key is unknown or wrong; {_REMEDY}.", reason="unknown")
        now = self._now()
        if (state := key.state(now)) != "active":
            raise Unauthenticated(f"The API key {key.id} is {state}; {_REMEDY}.", reason=state)
        self._note_use(key.id, now)
        return key

    def issue(self, owner: str) -> IssuedKey:
        """Make a key that does not expire; returns when it is safe on the disk.

        Raises: InvalidValue, TooManyRequests (too many at once, or key_limit), StorageFull, KeysUnavailable.
        """
        if self._closed:
            raise KeysUnavailable("The service is stopping; try again when it is back.", retry_after_s=5)
        if self._issues_waiting >= ISSUES_WAITING_MAX:
            raise TooManyRequests("Too many keys are being made at this moment; try again.", retry_after_s=2)
        self._issues_waiting += 1
        try:
            with gevent.Timeout(ISSUE_TIMEOUT_S, _too_slow(self._store)):
                return self._write(self._store.issue, owner)  # type: ignore[no-any-return]
        except KeyStoreError as error:
            raise KeysUnavailable(str(error)) from error
        finally:
            self._issues_waiting -= 1

    def close(self) -> None:
        """Write the times of last use and close the file; a slow disk gets CLOSE_TIMEOUT_S for that."""
        if self._closed:
            return
        self._closed = True
        if self._touch_timer is not None:
            self._touch_timer.kill(block=False)
        gevent.with_timeout(CLOSE_TIMEOUT_S, self._finish, timeout_value=None)

    def _finish(self) -> None:
        self._write_uses()
        self._reader_thread.apply(self._reader.close)
        self._write(self._store.close)  # last: who may write then folds the -wal into the file
        self._reader_thread.kill()
        self._writer_thread.kill()

    def _see(self, since: float) -> None:
        """Return when the table shows the file as it was after `since`, or the file cannot be read.

        A look that takes LOOK_TIMEOUT_S (a disk that hangs) is waited for no longer, by nobody.
        """
        while self._true_as_of <= since and not self._closed:
            if self._look is not None:
                left_s = self._look_began_at + LOOK_TIMEOUT_S - self._clock()
                if left_s <= 0 or self._look.wait(left_s) is None:
                    self._complain("it does not answer")
                    return
            elif (pause_s := self._look_began_at + LOOK_PAUSE_S - self._clock()) > 0:
                self._sleep(pause_s)
            else:
                self._begin_look()

    def _begin_look(self) -> None:
        self._look_began_at = self._clock()
        self._look = self._reader_thread.spawn(_attempt, self._reader.read)
        # Linked to the look and not done by who asked for it: that greenlet may be killed while it waits.
        self._look.rawlink(self._end_look)

    def _end_look(self, look: AsyncResult[Attempt]) -> None:
        keys, error = cast("Attempt", look.get())
        self._look = None
        self._true_as_of = self._look_began_at
        if error is not None:
            self._complain(str(error))
            return
        if keys is not None:
            self._keys = keys
        if self._failing:
            self._failing = False
            log.info("The key database %s can be read again.", self._store.path)

    def _complain(self, reason: str) -> None:
        if not self._failing:
            log.error(
                "The key database %s cannot be read (%s); going on with the %d keys last read.",
                self._store.path,
                reason,
                len(self._keys),
            )
        self._failing = True

    def _note_use(self, key_id: str, now: float) -> None:
        self._used[key_id] = now
        if self._touch_timer is None and not self._closed:
            self._touch_timer = gevent.spawn_later(TOUCH_EVERY_S, self._write_uses)

    def _write_uses(self) -> None:
        used, self._used, self._touch_timer = self._used, {}, None
        if not used:
            return
        try:
            self._write(self._store.touch, used)
        except ApplianceError as error:
            # Not worth an error for anybody; they are written with the next ones.
            log.warning("The keys' times of last use are not written: %s", error)
            self._used = used | self._used

    def _write(self, function: Callable[..., Any], *args: Any) -> Any:
        value, error = cast("Attempt", self._writer_thread.spawn(_attempt, function, *args).get())
        if error is not None:
            raise error
        return value


def _open(store: KeyStore) -> tuple[KeyReader, dict[str, Key]]:
    try:
        reader = KeyReader(store.path)
        try:
            return reader, reader.read() or {}
        except BaseException:
            reader.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise KeyStoreError(f"The key database {store.path} cannot be read: {error}.") from error


def _too_slow(store: KeyStore) -> KeysUnavailable:
    return KeysUnavailable(
        f"The disk of {store.path} does not answer; try again, and look at the node if this lasts.",
        retry_after_s=30,
    )


def _attempt(function: Callable[..., Any], *args: Any) -> Attempt:
    """Hand an error back as a value: raised in a pool's thread, gevent would also print it to stderr."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error
