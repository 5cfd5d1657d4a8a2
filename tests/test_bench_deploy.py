"""A deployment that is interrupted leaves nothing running that would go on changing the node."""

from __future__ import annotations

import os
from pathlib import Path

import gevent
import pytest
from gevent import subprocess
from harness import DEADLINE_S

from bench.tuning import deploy


def test_an_interruption_ends_a_playbooks_forks_too(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Both hold the pipe's end; it is at its end when neither lives.
    script = f"exec 3> {pipe}; sleep 1000 & wait"
    deploying = gevent.spawn(deploy.run, ["sh", "-c", script])
    with gevent.Timeout(DEADLINE_S), gevent.get_hub().threadpool.apply(pipe.open) as reading:
        deploying.kill()
        assert gevent.get_hub().threadpool.apply(reading.read) == ""


def test_what_a_program_says_and_its_status_come_back() -> None:
    assert deploy.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\nerr\n")


def test_an_interruption_that_finds_nothing_left_to_end_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(group: int, signum: int) -> None:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(os, "killpg", gone)
    monkeypatch.setattr(deploy, "LIMIT_S", 0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        deploy.run(["sleep", "0.2"])
