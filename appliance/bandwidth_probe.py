"""How fast this machine's cores read its memory: the bound of a decode, which reads all weights for each token.

STREAM's rules (McCalpin 1995: far more data than the caches hold, the threads at the same time, several trials), but
for reading alone: its kernels write too, a decode does not. What reads is the C library's memchr, looking for a byte
that is not there: written for the processor's widest loads, it does less a byte than any use of it can, and ctypes
gives up Python's lock meanwhile. Its own speed, on data that the second cache holds, is measured too: as long as that
is well above the figure, the figure is the memory's. As with STREAM the best trial counts, for what else runs can only
slow one down.

Its errors. Too low: a thread begins up to a millisecond late (1 % of a trial), pages are small and their addresses must
be found, as for a mapped model; a virtual machine shares its cores. Too high: where the caches hold a quarter of the
data or more, which `cache_mib` and `buffer_mib` show.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import msgspec
from gevent.threadpool import ThreadPool

from appliance.machine import MIB, number, text

TRIALS = 5
TRIAL_S = 0.1
CACHES = 4  # times what the last caches hold, as STREAM wants it
LEAST_MIB, MOST_MIB = 64, 256  # of the service's MemoryMax of 512
CACHED_BYTES = 128 * 1024
HERE, WANTED = 1, 2

_libc = ctypes.CDLL(None)
_memchr = _libc.memchr
_memchr.restype, _memchr.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_memset = _libc.memset
_memset.restype, _memset.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """So many threads at once; bytes a second, all together: the best trial, the median one, the worst."""

    threads: int
    best: float
    median: float
    worst: float
    trials: int


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    bytes_per_s: the best of all readings, by `threads` at once. in_cache_bytes_per_s: of one thread on data that
    its second cache holds. buffer_mib: how much was read again and again. cache_mib: what the last caches hold; null is
    not known.
    """

    bytes_per_s: float
    threads: int
    readings: list[Reading]
    in_cache_bytes_per_s: float
    buffer_mib: int
    cache_mib: float | None


def measure(cores: int, buffer_mib: int, cache_mib: float | None, trial_s: float = TRIAL_S) -> Bandwidth:
    """Read with 1, 2, 4 … and all cores, in threads of its own: it takes TRIALS * trial_s seconds each, and blocks only
    the greenlet that calls it.

    Raises: MemoryError when there is no room for the buffer.
    """
    try:
        buffer = mmap.mmap(-1, buffer_mib * MIB)
    except OSError as error:
        raise MemoryError from error
    view = ctypes.c_char.from_buffer(buffer)
    pool = ThreadPool(cores)
    try:
        start = ctypes.addressof(view)
        # What was never written to is one page of zeros, again and again, and in the first cache.
        pool.apply(_memset, (start, HERE, len(buffer)))
        readings = [_reading(pool, start, len(buffer), threads, trial_s) for threads in thread_counts(cores)]
        cached = [pool.apply(_read, (start, CACHED_BYTES, time.monotonic() + trial_s)) for _ in range(TRIALS)]
    finally:
        pool.kill()
        del view
        buffer.close()
    best = max(readings, key=lambda reading: reading.best)
    return Bandwidth(
        bytes_per_s=best.best,
        threads=best.threads,
        readings=readings,
        in_cache_bytes_per_s=round(max(cached)),
        buffer_mib=buffer_mib,
        cache_mib=cache_mib,
    )


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4 … below the number of cores, and that."""
    return [2**power for power in range(cores.bit_length()) if 2**power < cores] + [cores]


def _reading(pool: ThreadPool, start: int, size: int, threads: int, trial_s: float) -> Reading:
    share = size // threads
    trials: list[float] = []
    for _ in range(TRIALS):
        ends_at = time.monotonic() + trial_s
        jobs = [pool.spawn(_read, start + thread * share, share, ends_at) for thread in range(threads)]
        trials.append(sum(float(job.get() or 0) for job in jobs))
    return Reading(
        threads=threads,
        best=round(max(trials)),
        median=round(median(trials)),
        worst=round(min(trials)),
        trials=TRIALS,
    )


def _read(start: int, size: int, ends_at: float) -> float:
    """Bytes a second of one thread that reads the same bytes until `ends_at` (monotonic), at least once."""
    began, passes = time.monotonic(), 0
    while passes == 0 or time.monotonic() < ends_at:
        if _memchr(start, WANTED, size) is not None:
            raise AssertionError("the byte is nowhere in the buffer")
        passes += 1
    return passes * size / (time.monotonic() - began)


def buffer_mib_for(cache_mib: float | None) -> int:
    """Far more than the caches hold, and no more than the service may have."""
    return max(LEAST_MIB, min(MOST_MIB, round(CACHES * (cache_mib or 0))))


def cache_mib(root: Path) -> float | None:
    """What the last caches hold together: of the highest level, each once, whoever shares it."""
    found: dict[tuple[int, str], float] = {}
    for index in root.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index*"):
        level, size, shared = number(index / "level"), text(index / "size") or "", text(index / "shared_cpu_list")
        if level is not None and size[:-1].isdigit() and size[-1] in "KM":
            found[level, shared or index.parent.parent.name] = int(size[:-1]) / (1024 if size[-1] == "K" else 1)
    last = max((level for level, _ in found), default=None)
    return None if last is None else sum(mib for (level, _), mib in found.items() if level == last)


def usable_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0))


def probe(root: Path, run: Callable[[int, int, float | None], Bandwidth] = measure) -> Bandwidth:
    caches = cache_mib(root)
    return run(usable_cores(), buffer_mib_for(caches), caches)
