"""Where a playbook's downloads arrive on the controller: apart from those of another, and a killed one's are found."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import roles

sys.path.insert(0, str(roles.ROOT / "ansible" / "library"))
import arrivals


@pytest.fixture
def dead() -> str:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return str(process.pid)


def folder(incoming: Path, name: str) -> Path:
    made = incoming / name
    made.mkdir(parents=True)
    (made / "blob").write_text(name)
    return made


def test_the_folder_is_named_by_the_playbook_and_not_by_the_worker_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=4711))
    assert roles.evaluate("model", "'/cache/incoming' | of_this_run", None) == "/cache/incoming/4711"


def test_what_another_playbook_downloads_stays(tmp_path: Path) -> None:
    other = folder(tmp_path, str(os.getppid()))
    assert arrivals.made(tmp_path / str(os.getpid()), inherit=True)
    assert [path.name for path in other.iterdir()] == ["blob"]
    assert list((tmp_path / str(os.getpid())).iterdir()) == []


def test_what_a_killed_playbook_left_is_removed(tmp_path: Path, dead: str) -> None:
    folder(tmp_path, dead)
    assert arrivals.made(tmp_path / "1", inherit=False)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["1"]


def test_whole_files_of_a_killed_playbook_can_be_taken_over(tmp_path: Path, dead: str) -> None:
    folder(tmp_path, dead)
    assert arrivals.made(tmp_path / "1", inherit=True)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["1", "1/blob"]
    assert arrivals.made(tmp_path / "1", inherit=True) is False
