"""All nodes at the same time: each alone on itself, and none waits for or fails with another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gevent
from gevent.event import Event
from gevent.pool import Pool

from bench.running.client import Target
from bench.running.ending import Interrupted

AT_ONCE = 256  # a controller holds some sockets and files for each

T = TypeVar("T")


def on_each(
    targets: Sequence[Target],
    do: Callable[[Target], T],
    interrupt: Event,
    at_once: int = AT_ONCE,
    failed: Callable[[Target, str], T] | None = None,
) -> list[T | None]:
    """What `do` gives for each node, in their order; None for those that an interruption ended without a result.

    `interrupt` raises Interrupted in all that are at work, once; no other is begun after it.
    failed: makes of what nobody expected, whose traceback is on stderr, that node's result; without it, it is raised
      when all have ended.
    """
    pool, jobs = Pool(at_once), list[Any]()
    stopper = gevent.spawn(_stop_when_interrupted, interrupt, jobs)
    try:
        for target in targets:
            pool.wait_available()  # before it is asked for an interruption, which may come meanwhile
            if interrupt.is_set():
                break
            jobs.append(pool.spawn(do, target))
        pool.join()
    finally:
        stopper.kill()
    results = [_result(job, target, failed) for job, target in zip(jobs, targets, strict=False)]
    return results + [None] * (len(targets) - len(results))


def _stop_when_interrupted(interrupt: Event, jobs: Sequence[Any]) -> None:
    interrupt.wait()
    gevent.killall(list(jobs), Interrupted, block=False)


def _result(job: Any, target: Target, failed: Callable[[Target, str], T] | None) -> Any:
    error = job.exception
    if failed is not None and isinstance(error, Exception):
        return failed(target, f"{target.name}: a fault of bench itself: {type(error).__name__}: {error}")
    if error is not None:
        raise error
    return None if isinstance(job.value, gevent.GreenletExit) else job.value
