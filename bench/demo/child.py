"""Programs that the demo runs while it tends its nodes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from bench.demo.node import PR_SET_PDEATHSIG
from bench.demo.nodes import Nodes

STOP_TIMEOUT_S = 20.0


def run(command: Sequence[str], nodes: Nodes) -> int:
    """A command's exit status; it ends with us, whatever ends us. Raises: DemoFailed when a node ends meanwhile.

    In a session of its own, so that a Ctrl-C reaches it through us.
    """
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )
    try:
        nodes.tend_until(lambda: process.poll() is not None)
    finally:
        if process.poll() is None:
            _end(process)
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """With what it started itself."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        with suppress(subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(process.pid, number)
            process.wait(STOP_TIMEOUT_S)
            return
