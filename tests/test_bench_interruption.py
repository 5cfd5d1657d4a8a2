"""Which signals end the measuring, and that the terminal is left as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import DEADLINE_S, wait_until

SCRIPT = """
import sys, gevent
from bench.commands import interruption
interrupt = interruption.by_signals()
while gevent.get_hub().threadpool.apply(sys.stdin.readline):
    print(interrupt.is_set(), flush=True)
"""
IGNORED = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, its = os.openpty()
    yield ours, its
    os.close(ours)
    os.close(its)


def started(terminal: tuple[int, int], before: str = "") -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", before + SCRIPT], stdin=pipe, stdout=pipe, stderr=terminal[1], text=True
    )
    assert not is_interrupted(process)
    return process


def is_interrupted(process: subprocess.Popen[str]) -> bool:
    assert process.stdin
    assert process.stdout
    process.stdin.write("?\n")
    process.stdin.flush()
    said = process.stdout.readline()
    assert said in ("True\n", "False\n")
    return said == "True\n"


def test_a_dropped_session_is_an_interruption_and_never_the_second(terminal: tuple[int, int]) -> None:
    process = started(terminal)
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: is_interrupted(process), "it was interrupted")
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_under_nohup_it_goes_on_when_the_session_drops(terminal: tuple[int, int]) -> None:
    process = started(terminal, IGNORED)
    process.send_signal(signal.SIGHUP)
    assert not any(is_interrupted(process) for _ in range(3))
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_a_second_ctrl_c_leaves_the_terminal_its_cursor(terminal: tuple[int, int]) -> None:
    process = started(terminal)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: is_interrupted(process), "it was interrupted")
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 130
    process.communicate()
    assert os.read(terminal[0], 10_000).endswith(b"\x1b[?25h")
