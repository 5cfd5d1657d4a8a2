"""CPU time and memory of a process and its children, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """The process, its children and theirs."""
    pids = [pid]
    for task in (PROC / str(pid) / "task").iterdir():
        for child in (task / "children").read_text().split():
            pids += family(int(child))
    return pids


def cpu_ns(pids: list[int]) -> int:
    """Time on a CPU in ns, of all threads that are alive; threads that ended are not counted."""
    total = 0
    for pid in pids:
        for task in os.listdir(PROC / str(pid) / "task"):
            total += int((PROC / str(pid) / "task" / task / "schedstat").read_text().split()[0])
    return total


def pss_mib(pids: list[int]) -> float:
    """Proportional set size: what the processes hold alone, and their share of what they hold with others."""
    kib = 0
    for pid in pids:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024
