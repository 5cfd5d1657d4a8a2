"""How the measuring of a node ends: what became of it, told in one shape by every command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import gevent

from bench.running.client import BenchError
from bench.running.header import Header
from bench.running.runfile import RunFileError

R = TypeVar("R", bound=Header)


class Interrupted(gevent.GreenletExit):
    """Ctrl-C: what was measured is kept, and the run can go on later."""


@dataclass(frozen=True)
class Ended(Generic[R]):
    """What came of one node: its run and where that lies, or only the problem."""

    node: str
    run: R | None = None
    path: Path | None = None
    problem: str = ""


@contextmanager
def told_in(run: Header) -> Iterator[None]:
    """What ends the measuring in this block becomes the run's status and problem, and goes no further."""
    run.status, run.problem = "running", ""
    try:
        yield
        run.status = "complete"
    except Interrupted:
        run.status, run.problem = "interrupted", "interrupted; --resume goes on with it"
    except (BenchError, RunFileError) as error:
        kept = " What was measured is kept; --resume goes on with it." if error.may_pass else ""
        run.status, run.problem = "failed", str(error) + kept


def shielded(do: Callable[[], Any]) -> None:
    """Carry `do`, which raises nothing, out to its end, also where an interruption comes meanwhile: it comes once."""
    greenlet = gevent.spawn(do)
    try:
        greenlet.join()
    except Interrupted:
        greenlet.join()
