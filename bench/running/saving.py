"""A run's file, kept true while the run goes on; written by a thread, since a slow disk must hold up no clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from bench.running import runfile
from bench.running.header import Header
from bench.running.runfile import RunFileError


class Saving:
    """Of one run. every_s: how long what was measured may be in memory only."""

    def __init__(
        self, run: Header, results: Path, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = runfile.path_of(run, results)
        self._run, self._every_s, self._clock = run, every_s, clock
        self._saved_at = clock()
        self._writing: Any = None

    @property
    def is_due(self) -> bool:
        return self._clock() - self._saved_at >= self._every_s

    def soon(self) -> None:
        """Begin to write what there is now. A disk that is full may have room at the next; the last write tells."""
        self._saved_at = self._clock()
        if self._writing is None or self._writing.ready():
            self._writing = self._begin()

    def now(self) -> None:
        """Write what there is now. Raises: RunFileError."""
        if self._writing is not None:
            self._writing.wait()  # or an older state might replace this one
        self._saved_at = self._clock()
        error = self._begin().get()
        if error is not None:
            raise error

    def _begin(self) -> Any:
        return gevent.get_hub().threadpool.spawn(_try_to_write, runfile.encode(self._run), self.path)


def _try_to_write(data: bytes, path: Path) -> RunFileError | None:
    """gevent prints what a thread raises; an error that is expected is returned."""
    try:
        runfile.write(data, path)
    except RunFileError as error:
        return error
    return None
