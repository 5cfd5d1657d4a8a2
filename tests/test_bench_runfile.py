"""Run files: whole or not there, read in every format, refused with a sentence."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from bench_runs import failed, made, run_of, stage_of

from bench.running import runfile
from bench.running.client import Target
from bench.running.runfile import NewerFormat, RunFileError
from bench.running.samples import KIND, Mark, OpenLoop, Run


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    run = run_of(stage_of(made(), failed(status=503)), stage_of(made(), load=OpenLoop(0.5, "poisson"), number=1))
    run.marks = [Mark("other_requests", "why", "what to do")]
    path = runfile.path_of(run, tmp_path)
    runfile.write(runfile.encode(run), path)
    assert runfile.read(path, Run) == run
    assert path == tmp_path / "pi1" / f"{run.id}.json"
    assert json.loads(path.read_bytes())["format"] == 1


def test_a_newer_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 9}')
    with pytest.raises(NewerFormat, match=r"format 9, and this bench reads up to 1: .* update this one"):
        runfile.read(tmp_path / "run.json", Run)


def test_an_older_format_goes_through_every_step_to_this_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runfile, "FORMAT", 3)
    steps = {1: lambda old: {**old, "first": True}, 2: lambda old: {**old, "second": old["first"]}}
    assert runfile.migrated({"format": 1}, tmp_path, steps) == {"format": 3, "first": True, "second": True}


def test_every_format_that_ever_was_has_its_migration() -> None:
    assert sorted(runfile.MIGRATIONS) == list(range(1, runfile.FORMAT))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "1"}', '{"format": true}', '{"format": 1, "id": 7}', "\0"])
def test_what_is_no_run_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFileError, match=r"run\.json is no run of bench"):
        runfile.read(tmp_path / "run.json", Run)


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"none\.json cannot be read: No such file"):
        runfile.read(tmp_path / "none.json", Run)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_before_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    path = tmp_path / "pi1" / "run.json"
    runfile.write(b"before", path)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunFileError, match="No space left on device; make room, or choose another"):
        runfile.write(b"after", path)
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]
    assert path.read_bytes() == b"before"


def _write_for_ever(path: Path) -> None:
    for number in range(10**9):
        runfile.write(json.dumps({"number": number, "text": "x" * 200_000}).encode(), path)


def test_a_kill_in_the_middle_of_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "pi1" / "run.json"
    runfile.write(b'{"number": -1, "text": ""}', path)
    for _ in range(3):
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        writer.start()
        before = json.loads(path.read_bytes())["number"]
        while json.loads(path.read_bytes())["number"] in (-1, before):
            pass
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        assert len(json.loads(path.read_bytes())["text"]) == 200_000


def test_leftovers_of_a_killed_bench_go_with_the_next(tmp_path: Path) -> None:
    runfile.write(b"{}", tmp_path / "pi1" / "1.json")
    (tmp_path / "pi1" / ".1.json.abc.part").write_text("half")
    with runfile.locked(tmp_path, "pi1"):
        assert sorted(entry.name for entry in (tmp_path / "pi1").iterdir()) == [".lock", "1.json"]


def test_a_node_is_measured_by_one_bench_at_a_time(tmp_path: Path) -> None:
    with (
        runfile.locked(tmp_path, "pi1"),
        runfile.locked(tmp_path, "pi2"),
        pytest.raises(RunFileError, match=rf"another bench measures pi1 now \(process {os.getpid()}\); wait"),
        runfile.locked(tmp_path, "pi1"),
    ):
        pass
    with runfile.locked(tmp_path, "pi1"):
        pass


def test_the_newest_run_is_the_one_that_began_last(tmp_path: Path) -> None:
    for name in ("20260101T000000Z-run-ff", "20260102T000000Z-run-aa"):
        runfile.write(b"{}", tmp_path / "pi1" / f"{name}.json")
    assert runfile.newest(tmp_path, "pi1", KIND) == tmp_path / "pi1" / "20260102T000000Z-run-aa.json"
    assert runfile.newest(tmp_path, "pi2", KIND) is None


def test_a_clock_that_was_set_back_does_not_make_an_older_run_the_newest(tmp_path: Path) -> None:
    target = Target("pi1", "http://pi1:8000", "a key")
    runfile.write(b"{}", tmp_path / "pi1" / "29990101T000000Z-tune-ff.json")
    begun = runfile.begun(KIND, "s", target, tmp_path)
    assert begun["id"].startswith("29990101T000001Z-run-")
    assert not begun["started_at"].startswith("2999")
    assert not runfile.begun(KIND, "s", target, tmp_path / "elsewhere")["id"].startswith("2999")
