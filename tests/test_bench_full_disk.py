"""A disk that is really full, for one of two nodes: a clear message, the other node finishes, nothing is half written.

The folder of pi2 is a disk of some kilobytes, mounted in a name space of the process's own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_commands import PACKAGES, Bench
from harness import DEADLINE_S, Node, running_node
from small_disk import on_small_disk, require_small_disks

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "N_CTX": 512, "N_THREADS": 1, "N_BATCH": 64}
KNOBS = {"parallel": 4}
AXES = "--ctx 512 --threads 1,2 --batch 64,128 --max-tokens 8 --budget 60s"
FULL = "cannot be written: No space left on device"
FILL = "dd if=/dev/zero of=$DISK/.filler bs=4k 2>/dev/null"  # to the last page


@pytest.fixture
def bench(node: Node, engine: FakeHandle, tmp_path: Path) -> Iterator[Bench]:
    require_small_disks(tmp_path / "tried")
    engine.turn(tokens_per_s=100, factors="num_thread=2:2.0 num_batch=128:0.5")
    (tmp_path / "other").mkdir()
    with running_node(tmp_path / "other", OLLAMA_PORT=engine.port, **SETTINGS) as other:
        yield Bench(tmp_path, pi1=node, pi2=other)


def run(bench: Bench, disk: Path, size: str, script: str) -> list[Any]:
    """What the script prints, line by line, JSON decoded; $B is bench, $WHERE its options, $DISK the small disk."""
    where = f"--json --results {bench.results} -i {bench.inventory}/hosts.yml"
    script = script.replace("$B", f"{bench.python} -m bench").replace("$WHERE", where).replace("$DISK", str(disk))
    env = {"PATH": bench.path, "PYTHONPATH": PACKAGES, "HOME": str(bench.folder)}
    process = on_small_disk(disk, size, script, env=env, cwd=bench.folder)
    try:
        out, err = process.communicate(timeout=DEADLINE_S * 6)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert "Traceback" not in err, err
    return [json.loads(line) if line.startswith("{") else line for line in out.splitlines()]


def by_node(told: dict[str, Any]) -> dict[str, Any]:
    return {each["node"]: each for each in told["nodes"]}


def test_a_tune_whose_file_does_not_fit_is_told_and_goes_on_when_there_is_room(bench: Bench) -> None:
    disk = bench.results / "pi2"
    script = (
        f"$B tune $WHERE {AXES}; echo status $?; cat $DISK/*.json; find $DISK -name '*.part';"
        "mount -o remount,size=4m $DISK; $B tune $WHERE --resume; echo status $?"
    )
    told, status, kept, again, last = run(bench, disk, "12k", script)
    first, second = by_node(told)["pi1"], by_node(told)["pi2"]
    assert status == "status 1"
    assert (first["status"], first["problem"]) == ("complete", "")
    assert FULL in second["problem"]
    assert "make room, or choose another place with --results" in second["problem"]
    assert (kept["node"], kept["status"]) == ("pi2", "running")
    assert by_node(again)["pi2"]["run"] == kept["id"]
    assert by_node(again)["pi2"]["status"] == "complete"
    assert last in ("status 0", "status 3")


def test_a_tune_of_which_not_even_the_beginning_fits_measures_nothing(bench: Bench) -> None:
    script = f"{FILL}; $B tune $WHERE {AXES}; echo status $?; ls -A $DISK | tr '\\n' ' '"
    told, status, left = run(bench, bench.results / "pi2", "8k", script)
    assert (status, left.split()) == ("status 1", [".filler", ".lock"])
    assert FULL in by_node(told)["pi2"]["problem"]
    assert by_node(told)["pi1"]["status"] == "complete"


def test_a_profile_that_does_not_fit_leaves_the_one_that_was_there(bench: Bench) -> None:
    disk, kept = bench.inventory / "host_vars" / "pi2", bench.folder / "kept"
    bench.give("pi2", N_CTX=512, N_THREADS=1, N_BATCH=64).rename(kept)
    script = (
        f"cp {kept} $DISK/tuned.yml; {FILL}; $B tune $WHERE {AXES} --force; echo status $?;"
        f"cmp $DISK/tuned.yml {kept} && ls -A $DISK | tr '\\n' ' '"
    )
    told, status, left = run(bench, disk, "8k", script)
    assert status == "status 1"
    assert FULL in by_node(told)["pi2"]["problem"]
    assert "The profile that stands there is whole" in by_node(told)["pi2"]["problem"]
    assert left.split() == [".filler", "tuned.yml"]
    assert by_node(told)["pi1"]["written"] == "written"


def test_a_run_whose_file_does_not_fit_is_told_and_the_other_is_whole(bench: Bench) -> None:
    script = "$B run $WHERE --requests 60 --max-tokens 8 --prompt-tokens 48; echo status $?; cat $DISK/*.json"
    told, status, kept = run(bench, bench.results / "pi2", "12k", script)
    assert status == "status 1"
    assert FULL in told["problems"]["pi2"]
    assert "pi1" not in told["problems"]
    assert kept["status"] == "running"
