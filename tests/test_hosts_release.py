"""The release for test hosts looks like Ollama's, twice the same, and its command reads what Ollama reads."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import ollama, release

PAYLOAD = {
    "bin/ollama": b"#!/bin/sh\n",
    "lib/ollama/llama-server": b"a",
    "lib/ollama/libggml.so.0.20.2": b"b",
    "lib/ollama/cuda_v12/libggml-cuda.so": bytes(1000),
    "lib/ollama/embedded/version": b"1",
}
Build = Callable[..., release.Release]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds of a small payload, which differs by version."""

    def members(version: str, broken: bool) -> release.Members:
        return PAYLOAD | {"lib/ollama/embedded/version": f"{version} {broken}".encode()}

    monkeypatch.setattr(release, "_members", members)
    return lambda folder="a", **options: release.build(tmp_path / folder, **options)


def test_names_modes_and_owners_are_the_real_ones(build: Build) -> None:
    with tarfile.open(build(suffix="tgz").path) as archive:
        entries = {entry.name: (entry.type, oct(entry.mode), entry.uid) for entry in archive}
        link = archive.getmember("lib/ollama/libggml.so").linkname
    assert entries["bin/ollama"] == (tarfile.REGTYPE, "0o755", 0)
    assert entries["lib/ollama/cuda_v12"] == (tarfile.DIRTYPE, "0o755", 0)
    assert entries["lib/ollama/libggml.so"][0] == tarfile.SYMTYPE
    assert link == "libggml.so.0"
    assert not {"bin", "lib", "lib/ollama"} & set(entries)


@pytest.mark.parametrize("suffix", ["tar.zst", "tgz"])
def test_two_builds_are_the_same_bytes(build: Build, suffix: str) -> None:
    one, other = build("a", suffix=suffix), build("b", suffix=suffix)
    assert one.path.read_bytes() == other.path.read_bytes()
    assert one.path.name.endswith(f".{suffix}")


def test_versions_and_broken_ones_differ(build: Build) -> None:
    builds = [build(), build(version=release.NEXT_VERSION), build("broken", broken=True)]
    assert len({made.sha256 for made in builds}) == len({made.path for made in builds}) == 3


def test_what_is_there_is_taken_until_its_inputs_change(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    monkeypatch.setattr(release, "_compress", None)
    assert build() == first
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("", ("127.0.0.1", 11434)),
        ("127.0.0.1", ("127.0.0.1", 11434)),
        ("127.0.0.1:11500", ("127.0.0.1", 11500)),
        ("http://0.0.0.0:80", ("0.0.0.0", 80)),
        (":1", ("127.0.0.1", 1)),
        ("[::1]:5", ("::1", 5)),
    ],
)
def test_the_host_is_read_in_all_its_forms(host: str, address: tuple[str, int]) -> None:
    assert ollama.address(host) == address


def test_it_passes_on_what_ollama_is_told() -> None:
    told = ollama.options({"HOME": "/var/lib/ollama", "OLLAMA_NUM_PARALLEL": "3", "EMBEDDED_REGISTRY_RATE": "9"}, "1.2")
    pairs = dict(zip(told[::2], told[1::2], strict=True))
    assert pairs["--store"] == "/var/lib/ollama/.ollama/models"
    assert (pairs["--parallel"], pairs["--registry-rate"], pairs["--says-version"]) == ("3", "9", "1.2")


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    ollama.make_key(tmp_path)
    key = tmp_path / ".ollama/id_ed25519"
    key.write_text("kept")
    ollama.make_key(tmp_path)
    assert (key.stat().st_mode & 0o777, key.read_text()) == (0o600, "kept")


def test_any_other_command_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version").write_text("1")
    monkeypatch.setattr(ollama, "OURS", tmp_path)
    monkeypatch.setattr("sys.argv", ["ollama", "run", "x"])
    with pytest.raises(SystemExit, match="unknown command 'run x'"):
        ollama.main()
