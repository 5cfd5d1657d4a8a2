"""A wall clock that is set back and forth, on the controller and on the node, changes labels and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_commands import PACKAGES
from harness import PROJECT, Node, running_node

from bench.fake.handle import FakeHandle
from bench.running import runfile
from bench.running.samples import Run
from bench.tuning.tune_file import TuneRun

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "N_CTX": 512, "N_THREADS": 1, "N_BATCH": 64}
JUMPING = str(Path(__file__).parent / "jumping_clock")
AXES = ("--ctx", "512", "--threads", "1,2", "--batch", "64", "--max-tokens", "8", "--budget", "30s")


@pytest.fixture
def jumping(engine: FakeHandle, tmp_path: Path) -> Iterator[Node]:
    engine.turn(tokens_per_s=100, factors="num_thread=2:2.0")
    path = os.pathsep.join((JUMPING, str(PROJECT)))
    (tmp_path / "node").mkdir()
    with running_node(tmp_path / "node", OLLAMA_PORT=engine.port, PYTHONPATH=path, **SETTINGS) as found:
        yield found


def bench(node: Node, folder: Path, *arguments: str) -> tuple[Any, float]:
    """What it tells, and how long it took by a clock that does not jump."""
    begun = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "bench", *arguments, "--json", "--results", str(folder),
         "--node", f"pi1=http://127.0.0.1:{node.port}"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join((JUMPING, PACKAGES)), "BENCH_KEY": node.key},
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert process.returncode in (0, 3), process.stderr
    return json.loads(process.stdout), time.monotonic() - begun


def test_the_clock_of_these_tests_really_jumps() -> None:
    look = "import time, datetime; print(time.time()); print(datetime.datetime.now().timestamp())"
    env = {"PYTHONPATH": JUMPING}
    said = subprocess.run([sys.executable, "-c", look], env=env, capture_output=True, text=True, check=True).stdout
    first, second = map(float, said.split())
    assert abs(second - first) > 3600


def test_a_tune_has_true_durations_under_a_clock_that_jumps(jumping: Node, tmp_path: Path) -> None:
    told, took_s = bench(jumping, tmp_path, "tune", *AXES)
    run = runfile.read(Path(told["nodes"][0]["file"]), TuneRun)
    assert run.status == "complete"
    began = [block.began_s for block in run.blocks]
    assert began == sorted(began)
    assert 0 < sum(block.cost_s for block in run.blocks) <= run.wall_s < took_s
    assert all(0 < ran.latency_ms < 1000 * took_s for block in run.blocks for ran in block.samples)


def test_a_run_has_true_latencies_under_a_clock_that_jumps(jumping: Node, tmp_path: Path) -> None:
    told, took_s = bench(jumping, tmp_path, "run", "--requests", "6", "--max-tokens", "8", "--prompt-tokens", "48")
    run = runfile.read(Path(told["files"]["pi1"]), Run)
    samples = run.stages[0].measured
    assert [len(samples), sum(1 for sample in samples if sample.counts)] == [6, 6]
    assert all(0 <= s.planned_s <= s.sent_s <= s.tokens_s[0] <= s.ended_s < took_s for s in samples)
    assert run.wall_s < took_s
    assert [mark.code for mark in run.marks if mark.code not in ("client_late", "client_busy")] == []


def test_what_began_last_is_the_newest_however_the_clock_jumped(jumping: Node, tmp_path: Path) -> None:
    files = [bench(jumping, tmp_path, "tune", *AXES, "--budget", "1s")[0]["nodes"][0]["file"] for _ in range(3)]
    assert files == sorted(files)
