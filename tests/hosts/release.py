"""An Ollama release for test hosts: an archive of the real one's layout whose `bin/ollama` is our embedded engine.

To a role the two differ in URL, checksum and model name only. As in the real archive, names have no `./` before them,
nobody but root owns anything, libraries are links to each other, the folders `bin` and `lib` have no entry of their
own, and there is CUDA to leave out, here zeros. A second build of the same inputs has the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from appliance import __version__
from appliance.embedded import weights
from tests.hosts import registry
from tests.hosts.machine import PROJECT, STATE, Refused, run
from tests.hosts.registry import Members

VERSION, NEXT_VERSION = "0.34.4-test1", "0.34.4-test2"
PYTHONS = ("3.11", "3.13")  # of Debian 12 and 13

_OURS = "lib/ollama/embedded"
_LOCK = PROJECT / "appliance/embedded/requirements.lock"
_NEEDED = ("click", "msgspec", "xllamacpp")
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}
_CUDA_BYTES = 8 << 20
_LINKS = {"lib/ollama/libggml.so": "libggml.so.0", "lib/ollama/libggml.so.0": "libggml.so.0.20.2"}
_EXECUTABLE = ("bin/ollama", "lib/ollama/llama-server", "lib/ollama/llama-quantize")
_TIME = 1_767_225_600  # of every file: 2026-01-01

Suffix = Literal["tar.zst", "tgz"]


@dataclass(frozen=True)
class Release:
    """An archive as it can be downloaded. sha256: of the archive, in hex."""

    path: Path
    sha256: str
    version: str


def build(directory: Path, version: str = VERSION, *, broken: bool = False, suffix: Suffix = "tar.zst") -> Release:
    """Make the archive, or take the one that is there if nothing it is made of has changed.

    directory: gets `v<version>/ollama-linux-<architecture>.<suffix>`, as the project's downloads are called.
    broken: `ollama serve` ends at once with an error. suffix: `tgz` is how releases before 0.14 came.
    Raises: Refused when a tool or the network is missing.
    """
    members = _members(version, broken)
    path = directory / f"v{version}" / f"ollama-linux-{_ARCHITECTURE[platform.machine()]}.{suffix}"
    made_of, stamp = _made_of(members), path.with_name(f".{path.name}.stamp")
    if path.is_file() and stamp.is_file() and stamp.read_text().startswith(f"{made_of} "):
        return Release(path, stamp.read_text().split()[1], version)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    _compress(members, unfinished, suffix)
    with unfinished.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    unfinished.rename(path)
    stamp.write_text(f"{made_of} {sha256}\n")
    return Release(path, sha256, version)


def _members(version: str, broken: bool) -> Members:
    ours: Members = {"version": version.encode(), "libgomp.so.1": _libgomp(), **_appliance(), **_packages()}
    ours |= {f"registry/{name}": content for name, content in registry.members(weights.ensure()).items()}
    if broken:
        ours["broken"] = b""
    cuda: Members = {f"cuda_{v}/libggml-cuda.so": bytes(_CUDA_BYTES) for v in ("v12", "v13")}
    lib: Members = {
        **cuda,
        "libggml.so.0.20.2": b"stands for a library\n",
        "llama-server": b"#!/bin/sh\nexit 1\n",
        "llama-quantize": b"#!/bin/sh\nexit 1\n",
    }
    command: Members = {"bin/ollama": Path(__file__).with_name("ollama.py")}
    return command | {f"lib/ollama/{n}": c for n, c in lib.items()} | {f"{_OURS}/{n}": c for n, c in ours.items()}


def _appliance() -> Members:
    """What `appliance engine` is made of, and the metadata that tells its version."""
    package = PROJECT / "appliance"
    files = [package / "__init__.py", package / "commands/__init__.py", package / "commands/engine.py"]
    files += [path for path in (package / "embedded").iterdir() if path.suffix in (".py", ".txt")]
    metadata = f"Metadata-Version: 2.1\nName: pi-llm-fleet\nVersion: {__version__}\n".encode()
    members: Members = {f"packages/pi_llm_fleet-{__version__}.dist-info/METADATA": metadata}
    return members | {f"packages/{path.relative_to(PROJECT)}": path for path in files}


@cache
def _packages() -> Members:
    """The packages it imports, unpacked: those of one Python in `cp311`, those of any in `packages`."""
    members: Members = {}
    for python in PYTHONS:
        for wheel in sorted(_wheels(python).glob("*.whl")):
            own = f"cp{python.replace('.', '')}"
            folder = own if f"-{own}-{own}-" in wheel.name else "packages"
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                members |= {f"{folder}/{name}": archive.read(name) for name in names}
    return members


def _wheels(python: str) -> Path:
    """A folder with the pinned wheels for this Python and this machine's architecture, downloaded once."""
    pins = [part for part in re.split(r"(?m)^(?=\w)", _LOCK.read_text()) if part.split("==")[0] in _NEEDED]
    version = hashlib.sha256("".join(pins).encode()).hexdigest()[:12]
    folder = STATE / "wheels" / f"{version}-{python}"
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(f".{folder.name}")
    unfinished.mkdir(parents=True, exist_ok=True)
    requirements = unfinished / "requirements.txt"
    requirements.write_text("".join(pins))
    tag = python.replace(".", "")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", str(requirements)]
    command += ["--implementation", "cp", "--python-version", python, "--abi", f"cp{tag}", "--abi", "abi3"]
    for glibc in ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_34"):
        command += ["--platform", f"{glibc}_{platform.machine()}"]
    run([*command, "--dest", str(unfinished)])
    unfinished.rename(folder)
    return folder


def _libgomp() -> Path:
    name = "libgomp.so.1"
    folders = ("/usr/lib", "/lib", f"/usr/lib/{platform.machine()}-linux-gnu")
    found = next((path for folder in folders if (path := Path(folder, name)).is_file()), None)
    if found is None:
        raise Refused(f"this machine lacks {name}; on Debian: sudo apt-get install libgomp1")
    return found.resolve()


def _made_of(members: Members) -> str:
    """A digest of all that goes into the archive, and of what makes it."""
    total = hashlib.sha256(Path(__file__).read_bytes())
    for name, content in sorted(members.items()):
        total.update(f"\0{name}\0".encode())
        if isinstance(content, bytes):
            total.update(content)
        else:
            with content.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _compress(members: Members, path: Path, suffix: Suffix) -> None:
    with path.open("wb") as out:
        if suffix == "tgz":
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=out, mtime=0) as stream:
                _write_archive(members, stream)
            return
        command = ["zstd", "-q", "-1", "-T1"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out) as zstd:
            assert zstd.stdin is not None
            _write_archive(members, zstd.stdin)
            zstd.stdin.close()
            if zstd.wait():
                raise Refused("zstd failed")


def _write_archive(members: Members, out: IO[bytes] | gzip.GzipFile) -> None:
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for entry in _entries(members):
            if not entry.isreg():
                archive.addfile(entry)
                continue
            content = members[entry.name]
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                archive.addfile(entry, file)


def _entries(members: Members) -> Iterator[tarfile.TarInfo]:
    """Every entry of the archive, in its order; a folder below `lib/ollama` comes before what is in it."""
    known = {Path("."), Path("bin"), Path("lib"), Path("lib/ollama")}
    for name in sorted({*members, *_LINKS}):
        for folder in [path for path in reversed(Path(name).parents) if path not in known]:
            known.add(folder)
            yield _entry(str(folder), tarfile.DIRTYPE, 0o755)
        if name in _LINKS:
            yield _entry(name, tarfile.SYMTYPE, 0o777, linkname=_LINKS[name])
            continue
        content = members[name]
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        yield _entry(name, tarfile.REGTYPE, 0o755 if name in _EXECUTABLE else 0o644, size=size)


def _entry(name: str, kind: bytes, mode: int, *, size: int = 0, linkname: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname, entry.mtime = kind, mode, size, linkname, _TIME
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.release", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--version", default=VERSION)
    parser.add_argument("--broken", action="store_true")
    parser.add_argument("--suffix", default="tar.zst", choices=["tar.zst", "tgz"])
    told = parser.parse_args()
    try:
        release = build(told.directory, told.version, broken=told.broken, suffix=told.suffix)
    except Refused as refusal:
        sys.exit(f"Error: {refusal}")
    print(release.path, release.sha256)


if __name__ == "__main__":
    main()
