"""In a process with this folder on its path every look at the wall clock finds it set anew, by up to a day."""

from __future__ import annotations

import datetime
import itertools
import time
from typing import Any

_real = time.time
_jumps_s = itertools.cycle((0.0, 86400.0, -86400.0, 3600.0, -7200.0))


def _time() -> float:
    return _real() + next(_jumps_s)


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.fromtimestamp(_time(), tz)


time.time = _time
time.time_ns = lambda: int(_time() * 1e9)
datetime.datetime = _Datetime  # type: ignore[misc]
