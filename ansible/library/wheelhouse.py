#!/usr/bin/python
"""Packs a release of the appliance on the controller: our wheel and its locked dependencies, one tar for each platform.

Decides what belongs to a release and what its name is. Knows nothing of nodes: `appliance_release` unpacks there.

pip judges a requirement's marker by the Python that runs it, here the controller's, and not by the one it is told to
download for. So markers are judged here, for the node's Python, and pip gets a list that has none left.

Our own wheel is written here and not by a build backend: that would be fetched, in any version, to do on the controller
whatever it likes; and the same sources shall make the same bytes, since these name the release.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

DOCUMENTATION = r"""
module: wheelhouse
short_description: Pack the appliance and its locked dependencies for nodes that need no package index
description:
  - For each platform one tar with the wheels of appliance/requirements.lock, ours, and a C(requirements.txt) that names
    them all with hashes. It is made once, on the controller, and kept in O(cache_dir) under the release's name.
  - The release's name is the version and 8 hex digits over our sources, the lock and the recipe. So the same sources
    are the same release, whoever packs them and for whatever platform.
  - Where the tar is there already, neither pip nor the network is used.
options:
  source:
    description: The project's folder, with pyproject.toml and appliance/. Nothing in it is written.
    type: path
    required: true
  cache_dir:
    description: Where tars and downloaded wheels are kept.
    type: path
    default: ~/.cache/pi-llm/fleet
  platforms:
    description: What the nodes are, such as C(aarch64-3.13), machine and Python.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
    description: Nothing is downloaded or written; the paths are those where the tars would be.
author:
  - Pi LLM Fleet (@pi-llm-fleet)
"""

EXAMPLES = r"""
- name: Pack the release for the fleet
  wheelhouse:
    source: "{{ playbook_dir }}/.."
    platforms: [aarch64-3.11, aarch64-3.13]
  delegate_to: localhost
  run_once: true
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""

RETURN = r"""
release:
  description: The release's name.
  returned: always
  type: str
  sample: 0.1.0-5d41402a
version:
  description: The version in pyproject.toml.
  returned: always
  type: str
  sample: 0.1.0
archives:
  description: The tar of each platform.
  returned: always
  type: dict
  sample: {aarch64-3.13: /home/me/.cache/pi-llm/fleet/0.1.0-5d41402a-aarch64-cp313.tar}
packed:
  description: Platforms whose tar was missing.
  returned: always
  type: list
  elements: str
"""

RECIPE = 1  # raise it when the same sources shall be another release
GLIBC_2_36 = 36  # Debian 12's; wheels for a newer one would not load there
OLDEST_GLIBC = {"aarch64": 17, "x86_64": 5}  # PEP 600: manylinux2014 and manylinux1
LEGACY_TAGS = {"aarch64": ["manylinux2014"], "x86_64": ["manylinux2014", "manylinux2010", "manylinux1"]}
PINNED = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?==(?P<version>[^\s;]+)(\s*;\s*(?P<marker>.+?))?(?P<hashes>(\s+--hash=\S+)+)"
)
WHEEL_FILE = b"Wheel-Version: 1.0\nGenerator: wheelhouse\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
DOWNLOAD_MAX_S = 3600  # some 20 MB; pip itself bounds only how long a connection stands still
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that zip knows


class WheelhouseError(Exception):
    """A sentence for who runs the play."""


class Platform(NamedTuple):
    """What a wheel must run on."""

    machine: str
    python: str

    def __str__(self) -> str:
        return f"{self.machine}-{self.python}"

    @property
    def tag(self) -> str:
        """As file names have it: aarch64-cp313."""
        return f"{self.machine}-cp{self.python.replace('.', '')}"

    @property
    def wheel_tags(self) -> list[str]:
        """Every platform tag that its C library satisfies, the newest first. pip adds no older ones by itself."""
        numbered = [f"manylinux_2_{minor}" for minor in range(GLIBC_2_36, OLDEST_GLIBC[self.machine] - 1, -1)]
        return [f"{tag}_{self.machine}" for tag in [*numbered, *LEGACY_TAGS[self.machine]]]

    @property
    def marker_environment(self) -> dict[str, str]:
        """What PEP 508's markers are judged by, there and not here."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


class Wheel(NamedTuple):
    name: str
    content: bytes


class Sources(NamedTuple):
    """What a release is made of."""

    version: str
    requires_python: str
    wheel: Wheel
    lock: str

    @property
    def release(self) -> str:
        digest = hashlib.sha256(f"{RECIPE}\n{self.lock}\n".encode() + self.wheel.content).hexdigest()
        return f"{self.version}-{digest[:8]}"


# ------------------------------------------------------------------------------------------------------- what to pack


def read_sources(folder: Path) -> Sources:
    """Read the project. Raises: WheelhouseError when the folder is none."""
    try:
        pyproject = tomllib.loads((folder / "pyproject.toml").read_text())
        lock = (folder / "appliance" / "requirements.lock").read_text()
    except FileNotFoundError as error:
        raise WheelhouseError(f"{error.filename} is missing; source must be the project's folder.") from error
    project = pyproject["project"]
    return Sources(project["version"], project["requires-python"], _own_wheel(folder, pyproject), lock)


def parse_platform(text: str, requires_python: str) -> Platform:
    """aarch64-3.13 as a Platform. Raises: WheelhouseError for one that the appliance does not run on."""
    machine, _, python = text.partition("-")
    if machine not in OLDEST_GLIBC:
        raise WheelhouseError(f"platform {text}: the appliance runs on {' and '.join(OLDEST_GLIBC)}, not on {machine}.")
    if not re.fullmatch(r"\d+\.\d+", python) or python not in SpecifierSet(requires_python):
        raise WheelhouseError(
            f"platform {text}: the appliance needs Python {requires_python}, not {python or 'none'}; "
            "Debian 12 has 3.11 and Debian 13 has 3.13."
        )
    return Platform(machine, python)


def requirements(lock: str, platform: Platform) -> list[str]:
    """The lines of the lock that count on a platform: NAME==VERSION and hashes, no marker left."""
    text = re.sub(r"^\s*#.*$", "", lock.replace("\\\n", " "), flags=re.MULTILINE)
    return [
        f"{found['name']}=={found['version']} {' '.join(found['hashes'].split())}"
        for found in (_pinned(line) for line in text.splitlines() if line.strip())
        if not found["marker"] or Marker(found["marker"]).evaluate(platform.marker_environment)
    ]


def _pinned(line: str) -> re.Match[str]:
    found = PINNED.fullmatch(line.strip())
    if found is None:
        raise WheelhouseError(
            f"appliance/requirements.lock: {line.strip()[:60]!r} is not NAME==VERSION with hashes; "
            "`make lock` writes it."
        )
    return found


# ------------------------------------------------------------------------------------------------------- our own wheel


def _own_wheel(folder: Path, pyproject: dict[str, Any]) -> Wheel:
    """The wheel of the project's packages; the same bytes for the same sources."""
    project = pyproject["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    files = dict(_package_files(folder, pyproject["tool"]["setuptools"]))
    files |= {
        f"{stem}.dist-info/METADATA": _metadata(project).encode(),
        f"{stem}.dist-info/WHEEL": WHEEL_FILE,
        f"{stem}.dist-info/entry_points.txt": _entry_points(project["scripts"]).encode(),
        f"{stem}.dist-info/licenses/LICENSE": (folder / "LICENSE").read_bytes(),
    }
    files[f"{stem}.dist-info/RECORD"] = _record(files, stem).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # zlib's output differs between its versions
        for name, content in files.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, content)
    return Wheel(f"{stem}-py3-none-any.whl", packed.getvalue())


def _package_files(folder: Path, setuptools: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Modules of the named packages and the data files that they declare, in order."""
    for package in setuptools["packages"]:
        place = folder / package.replace(".", "/")
        patterns = ["*.py", *setuptools["package-data"].get(package, [])]
        for path in sorted({path for pattern in patterns for path in place.glob(pattern)}):
            yield str(path.relative_to(folder)), path.read_bytes()


def _metadata(project: dict[str, Any]) -> str:
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {project['name']}",
        f"Version: {project['version']}",
        f"Summary: {project['description']}",
        f"License-Expression: {project['license']}",
        "License-File: LICENSE",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {requirement}" for requirement in project["dependencies"]),
    ]
    return "\n".join(lines) + "\n"


def _entry_points(scripts: dict[str, str]) -> str:
    return "[console_scripts]\n" + "".join(f"{name} = {target}\n" for name, target in scripts.items())


def _record(files: dict[str, bytes], stem: str) -> str:
    """PEP 376's list: each file with its hash and size, itself without."""

    def digest(content: bytes) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()

    lines = [f"{name},sha256={digest(content)},{len(content)}" for name, content in files.items()]
    return "\n".join([*lines, f"{stem}.dist-info/RECORD,,"]) + "\n"


# ------------------------------------------------------------------------------------------------------------- packing


def pack(sources: Sources, platform: Platform, cache: Path) -> None:
    """Make the tar of a platform; it appears under its name when it is whole."""
    listed = requirements(sources.lock, platform)
    wheels = [Wheel(path.name, path.read_bytes()) for path in sorted(_downloaded(listed, platform, cache).iterdir())]
    name, version = sources.wheel.name.split("-")[:2]
    own = f"{name}=={version} --hash=sha256:{hashlib.sha256(sources.wheel.content).hexdigest()}"
    with _draft(archive_path(sources, platform, cache)) as draft, tarfile.open(draft, "w") as tar:
        _add(tar, "requirements.txt", "\n".join([*listed, own, ""]).encode())
        for wheel in sorted([*wheels, sources.wheel]):
            _add(tar, f"wheels/{wheel.name}", wheel.content)


def archive_path(sources: Sources, platform: Platform, cache: Path) -> Path:
    return cache / f"{sources.release}-{platform.tag}.tar"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file that is the same whoever packs it, and when."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))


def _downloaded(listed: list[str], platform: Platform, cache: Path) -> Path:
    """The folder with the wheels of these requirements. Ours change daily, these seldom: they are fetched once."""
    digest = hashlib.sha256("\n".join(listed).encode()).hexdigest()[:8]
    folder = cache / f"wheels-{digest}-{platform.tag}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix=".wheels-", dir=cache) as draft:
            wheels, requirements_file = Path(draft) / "wheels", Path(draft) / "requirements.txt"
            requirements_file.write_text("\n".join(listed) + "\n")
            _download(requirements_file, platform, wheels)
            os.sync()  # a rename may reach the disk before what it renames
            wheels.rename(folder)
    return folder


def _download(listed: Path, platform: Platform, folder: Path) -> None:
    """Fetch wheels with pip. Raises: WheelhouseError that names what is missing, and for what."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode:
        raise WheelhouseError(
            f"{sys.executable}, which runs ansible-playbook, has no pip; `{sys.executable} -m ensurepip` brings it, "
            "on Debian `apt install python3-pip`."
        )
    tags = [word for tag in platform.wheel_tags for word in ("--platform", tag)]
    target = ["--implementation", "cp", "--python-version", platform.python, *tags]
    what = ["--only-binary=:all:", "--require-hashes", "--no-deps", "--requirement", str(listed), "--dest", str(folder)]
    command = [*pip, "download", "--quiet", *target, *what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_MAX_S)
    except subprocess.TimeoutExpired:
        raise WheelhouseError(
            f"the wheels for {platform.machine} and Python {platform.python} did not come within {DOWNLOAD_MAX_S} s; "
            "look at the controller's network and at its package index, and run the playbook again."
        ) from None
    if done.returncode:
        raise WheelhouseError(_why(done.stderr, platform))


def _why(told: str, platform: Platform) -> str:
    """pip's complaint as a sentence. It says "no matching distribution" for a network that is not there, too."""
    last = [line for line in told.splitlines() if line.strip()][-1:] or ["(pip said nothing)"]
    if "onnection" in told or "Retrying" in told:
        return f"the controller cannot reach its package index, which this release's wheels come from once: {last[0]}"
    missing = re.search(r"No matching distribution found for (\S+)", told)
    if missing:
        return (
            f"there is no wheel of {missing[1]} for {platform.machine} and Python {platform.python}, and nodes compile "
            "nothing; choose another version in pyproject.toml and run `make lock`."
        )
    return f"pip could not download the wheels for {platform.machine} and Python {platform.python}: {last[0]}"


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A file that gets its name when it is whole and on the disk."""
    draft = path.with_name(f".{path.name}.draft")
    yield draft
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.rename(path)


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Two playbooks at once: the second waits, and finds what the first made. What a killed one left goes."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in cache.glob(".wheels-*"):
            shutil.rmtree(stale)
        for stale in cache.glob(".*.draft"):
            stale.unlink()
        yield


def packed(source: Path, cache: Path, names: list[str], *, check: bool) -> dict[str, Any]:
    """Make what is missing, and say where everything is."""
    sources = read_sources(source)
    platforms = {name: parse_platform(name, sources.requires_python) for name in sorted(set(names))}
    archives = {name: archive_path(sources, platform, cache) for name, platform in platforms.items()}
    missing = [name for name, path in archives.items() if not path.is_file()]
    if missing and not check:
        with _alone(cache):
            for name in missing:
                if not archives[name].is_file():
                    pack(sources, platforms[name], cache)
    return {
        "changed": bool(missing),
        "release": sources.release,
        "version": sources.version,
        "archives": {name: str(path) for name, path in archives.items()},
        "packed": missing,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "default": "~/.cache/pi-llm/fleet"},
            "platforms": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        answer = packed(
            Path(given["source"]), Path(given["cache_dir"]).resolve(), given["platforms"], check=module.check_mode
        )
    except WheelhouseError as error:
        module.fail_json(msg=f"wheelhouse: {error}")
    except OSError as error:
        module.fail_json(msg=f"wheelhouse: {error.filename or given['cache_dir']}: {error.strerror}.")
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
