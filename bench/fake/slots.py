"""The fake engine's slots: who runs, who waits, and with which load-time options the model is in memory."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from bench.fake.epoll_loop import FOREVER, Connection, Loop, Steps

LOAD_TIME_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
ANY_OPTIONS: tuple[Any, ...] = ("any",)


class Slots:
    """`parallel` slots and an endless line before them, as with Ollama; loading takes `load_s` seconds.

    loaded_with: the load-time options in force, ANY_OPTIONS when the next request's will do, None when not loaded.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.parallel, self.load_s = 1, 0.0
        self.loaded_with: tuple[Any, ...] | None = ANY_OPTIONS
        self.running = 0
        self.waiting: deque[Connection] = deque()
        self.forget()

    def forget(self) -> None:
        self.loads = self.peak_running = self.peak_waiting = 0

    def state(self) -> dict[str, int]:
        return {
            "running": self.running,
            "waiting": len(self.waiting),
            "loads": self.loads,
            "peak_running": self.peak_running,
            "peak_waiting": self.peak_waiting,
        }

    def acquire(self, connection: Connection, key: tuple[Any, ...]) -> Steps:
        """Wait in line for a slot; a request with other load-time options waits until nothing runs."""
        self.waiting.append(connection)
        try:
            while self.waiting[0] is not connection or not self._fits(key):
                self.peak_waiting = max(self.peak_waiting, len(self.waiting))
                yield FOREVER
            self.running += 1
            self.peak_running = max(self.peak_running, self.running)
        finally:
            self.waiting.remove(connection)
            self.wake_next()

    def load(self, key: tuple[Any, ...]) -> Steps:
        """Have the model in memory with these options; the slot is taken already."""
        if self.loaded_with not in (key, ANY_OPTIONS):
            self.loaded_with = None
            self.loads += 1
            yield time.monotonic() + self.load_s
        self.loaded_with = key
        self.wake_next()

    def release(self) -> None:
        self.running -= 1
        self.wake_next()

    def wake_next(self) -> None:
        if self.waiting:
            self._loop.wake(self.waiting[0])

    def _fits(self, key: tuple[Any, ...]) -> bool:
        is_loaded = self.loaded_with in (key, ANY_OPTIONS)
        return self.running < self.parallel and (is_loaded or self.running == 0)


def load_key(options: dict[str, Any]) -> tuple[Any, ...]:
    """What makes Ollama load a model again when it changes; num_ctx comes first."""
    return tuple(options.get(name, 4096 if name == "num_ctx" else None) for name in LOAD_TIME_OPTIONS)
