"""The wheelhouse: a release is packed once on the controller, the same for the same sources, whole or not at all."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "ansible" / "library"))
wheelhouse = importlib.import_module("wheelhouse")
Platform, WheelhouseError = wheelhouse.Platform, wheelhouse.WheelhouseError

PI = Platform("aarch64", "3.13")
HASH = "--hash=sha256:" + "0" * 64


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what belongs to a release."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "appliance", folder / "appliance", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[Platform]:
    """In place of pip: platforms that were asked for; each gets one wheel."""
    asked: list[Platform] = []

    def download(listed: Path, platform: Any, folder: Path) -> None:
        asked.append(platform)
        folder.mkdir()
        (folder / "click-8.5.1-py3-none-any.whl").write_bytes(b"a wheel")

    monkeypatch.setattr(wheelhouse, "_download", download)
    return asked


def packed(project: Path, cache: Path, *names: str, check: bool = False) -> dict[str, Any]:
    answer: dict[str, Any] = wheelhouse.packed(project, cache, list(names), check=check)
    return answer


# ---------------------------------------------------------------------------------------------------------- what it is


def test_the_same_sources_are_the_same_release_wherever_they_lie(project):
    assert wheelhouse.read_sources(project) == wheelhouse.read_sources(ROOT)
    assert re.fullmatch(r"\d+\.\d+\.\d+-[0-9a-f]{8}", wheelhouse.read_sources(project).release)


@pytest.mark.parametrize("file", ["appliance/app.py", "appliance/requirements.lock", "appliance/profiles/pi5-fast.env"])
def test_a_change_of_what_is_installed_is_another_release(project, file):
    before = wheelhouse.read_sources(project).release
    with (project / file).open("a") as source:
        source.write("# changed\n")
    assert wheelhouse.read_sources(project).release != before


def test_a_change_of_anything_else_is_none(project):
    before = wheelhouse.read_sources(project).release
    (project / "appliance" / "notes.txt").write_text("mine")
    (project / "README.md").write_text("other words")
    assert wheelhouse.read_sources(project).release == before


def test_our_wheel_holds_what_setuptools_would_pack(tmp_path):
    wheel = wheelhouse.read_sources(ROOT).wheel
    (tmp_path / wheel.name).write_bytes(wheel.content)
    with zipfile.ZipFile(tmp_path / wheel.name) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read("pi_llm_fleet-0.1.0.dist-info/METADATA").decode())
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("appliance/**/*.py")}
    assert modules | {"appliance/profiles/pi5-fast.env", "pi_llm_fleet-0.1.0.dist-info/entry_points.txt"} <= names
    assert "falcon<5,>=4.4" in {str(Requirement(text)) for text in metadata.get_all("Requires-Dist")}


def test_pip_installs_our_wheel_and_its_command_runs(tmp_path):
    wheel = wheelhouse.read_sources(ROOT).wheel
    (tmp_path / wheel.name).write_bytes(wheel.content)
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*argv, "--target", str(tmp_path / "there"), str(tmp_path / wheel.name)], check=True)
    assert (tmp_path / "there/bin/appliance").is_file()
    assert (tmp_path / "there/appliance/gunicorn.conf.py").is_file()


# ------------------------------------------------------------------------------------------------------- what it needs


@pytest.mark.parametrize(
    ("marker", "counts"),
    [
        ("sys_platform == 'win32'", False),
        ("python_version < '3.12'", False),
        ("python_version >= '3.12'", True),
        ("python_full_version >= '3.13'", True),
        ("platform_machine == 'x86_64'", False),
        ("platform_machine == 'aarch64' and platform_python_implementation == 'CPython'", True),
    ],
)
def test_a_marker_is_judged_by_the_nodes_python_and_not_by_this_one(marker, counts):
    lock = f"click==8.5.1 ; {marker} \\\n    {HASH} \\\n    {HASH}\n    # via nobody\n"
    assert wheelhouse.requirements(lock, PI) == ([f"click==8.5.1 {HASH} {HASH}"] if counts else [])


@pytest.mark.parametrize("line", ["click>=8", "click==8.5.1", "-r other.txt", "click @ https://example.org/click.whl"])
def test_a_lock_with_anything_unpinned_is_refused(line):
    with pytest.raises(WheelhouseError, match="make lock"):
        wheelhouse.requirements(line, PI)


@pytest.mark.parametrize(
    ("name", "told"),
    [("armv7l-3.13", "not on armv7l"), ("aarch64-3.9", "needs Python >=3.11,<3.14"), ("aarch64", "not none")],
)
def test_a_platform_that_the_appliance_does_not_run_on_is_refused(tmp_path, name, told):
    with pytest.raises(WheelhouseError, match=re.escape(told)):
        packed(ROOT, tmp_path, name)


def test_tags_reach_from_debian_12s_library_to_the_oldest():
    assert PI.wheel_tags[0] == "manylinux_2_36_aarch64"
    assert {"manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(PI.wheel_tags)
    assert "manylinux_2_37_aarch64" not in PI.wheel_tags


@pytest.mark.parametrize(
    ("pip", "told"),
    [
        (
            "ERROR: No matching distribution found for gevent==26.9.0",
            "no wheel of gevent==26.9.0 for aarch64 and Python 3.13",
        ),
        (
            "WARNING: Retrying (Retry(total=1)) after connection broken\nERROR: No matching distribution found for x",
            "cannot reach its package index",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "DO NOT MATCH THE HASHES"),
        ("", "pip said nothing"),
    ],
)
def test_what_pip_says_becomes_a_sentence(pip, told):
    assert told in wheelhouse._why(pip, PI)


def test_a_python_without_pip_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(WheelhouseError, match=r"has no pip; .* -m ensurepip"):
        wheelhouse._download(tmp_path / "requirements.txt", PI, tmp_path / "wheels")


def test_a_download_that_never_ends_is_given_up(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *" download "*) exec tail -f /dev/null;; esac\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(wheelhouse, "DOWNLOAD_MAX_S", 0.01)
    with pytest.raises(WheelhouseError, match=r"for aarch64 and Python 3\.13 did not come within 0\.01 s"):
        wheelhouse._download(tmp_path / "requirements.txt", PI, tmp_path / "wheels")


# ------------------------------------------------------------------------------------------------------------- packing


def test_it_is_packed_once_and_then_neither_pip_nor_network_is_asked(project, tmp_path, downloads):
    first = packed(project, tmp_path / "cache", "aarch64-3.13", "aarch64-3.11", "aarch64-3.13")
    again = packed(project, tmp_path / "cache", "aarch64-3.13", "aarch64-3.11")
    assert (first["changed"], first["packed"]) == (True, ["aarch64-3.11", "aarch64-3.13"])
    assert (again["changed"], again["packed"]) == (False, [])
    assert len(downloads) == 2
    assert again["archives"] == first["archives"]


def test_a_change_of_ours_alone_needs_no_network(project, tmp_path, downloads):
    packed(project, tmp_path / "cache", "aarch64-3.13")
    (project / "appliance" / "app.py").write_text("changed = True\n")
    assert packed(project, tmp_path / "cache", "aarch64-3.13")["changed"]
    assert len(downloads) == 1


def test_two_caches_hold_the_same_bytes(project, tmp_path, downloads):
    tars = [
        Path(packed(project, tmp_path / cache, "aarch64-3.13")["archives"]["aarch64-3.13"]) for cache in ("one", "two")
    ]
    assert tars[0].read_bytes() == tars[1].read_bytes()


def test_the_tar_lists_every_wheel_with_hashes(project, tmp_path, downloads):
    with tarfile.open(packed(project, tmp_path / "cache", "aarch64-3.13")["archives"]["aarch64-3.13"]) as tar:
        names = tar.getnames()
        listed = tar.extractfile("requirements.txt").read().decode().splitlines()
    assert names[0] == "requirements.txt"
    assert {name.partition("/")[0] for name in names[1:]} == {"wheels"}
    assert all("==" in line and " --hash=sha256:" in line and ";" not in line for line in listed)
    assert listed[-1].startswith("pi_llm_fleet==0.1.0 ")


def test_check_mode_tells_and_makes_nothing(project, tmp_path, downloads):
    answer = packed(project, tmp_path / "cache", "aarch64-3.13", check=True)
    assert (answer["changed"], downloads) == (True, [])
    assert not (tmp_path / "cache").exists()


def test_the_sources_stay_as_they_were(project, tmp_path, downloads):
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*")}
    packed(project, tmp_path / "cache", "aarch64-3.13")
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*")} == before


def test_what_a_killed_run_left_is_cleaned_and_no_half_tar_counts(project, tmp_path, downloads):
    cache = tmp_path / "cache"
    (cache / ".wheels-killed").mkdir(parents=True)
    (cache / ".half.tar.draft").write_text("half")
    archive = Path(packed(project, cache, "aarch64-3.13")["archives"]["aarch64-3.13"])
    names = {path.name for path in cache.iterdir()}
    assert {name for name in names if not name.startswith("wheels-")} == {".lock", archive.name}


# ------------------------------------------------------------------------------------------------------ the real wheels


def _resolved(archive: Path) -> Iterator[tuple[str, str, set[Tag], list[Requirement]]]:
    """Name, version, tags and requirements of each wheel in a tar."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers()[1:]:
            name, version, _, tags = parse_wheel_filename(Path(member.name).name)
            with zipfile.ZipFile(tar.extractfile(member)) as wheel:
                (path,) = (path for path in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", path))
                metadata = Parser().parsestr(wheel.read(path).decode())
            yield name, str(version), set(tags), [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]


@pytest.mark.wheels
@pytest.mark.parametrize("name", ["aarch64-3.11", "aarch64-3.13"])
def test_everything_a_pi_needs_is_there_as_wheels(tmp_path, name):
    archive = Path(packed(ROOT, tmp_path, name)["archives"][name])
    wheels = {canonicalize_name(found[0]): found[1:] for found in _resolved(archive)}
    environment = {**wheelhouse.parse_platform(name, ">=3.11").marker_environment, "extra": ""}
    for version, tags, needs in wheels.values():
        assert all(tag.platform == "any" or tag.platform.endswith("_aarch64") for tag in tags), version
        for need in needs:
            if need.marker is None or need.marker.evaluate(environment):
                assert wheels[canonicalize_name(need.name)][0] in need.specifier, need
