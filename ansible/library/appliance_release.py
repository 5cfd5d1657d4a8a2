#!/usr/bin/python
"""Lays a release of the appliance out on a node, beside the one that serves.

A virtual environment names its own path in every script, so it is made where it will stay, and `RELEASE.json`, written
last, says that it is whole: without it a release is none, and is made anew. Which release serves is not its business.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: appliance_release
short_description: Lay a release of the appliance out on a node
description:
  - Unpacks a tar of the M(wheelhouse) module and installs it, hashes checked, into a virtual environment of its own,
    without a package index. The tar and the wheels go again.
  - Then removes releases that are neither this one, nor current, nor kept.
options:
  release:
    description: The release's name.
    type: str
    required: true
  archive:
    description: The tar on the node, in the folder of the releases; it goes.
    type: path
    required: true
  keep:
    description: Names of other releases that stay, or paths that end in them.
    type: list
    elements: str
    default: []
  leftovers:
    description: The folder in the home of the ssh user in which copies from the controller arrive; emptied afterwards.
    type: str
    default: .ansible/pi-llm-fleet
  home:
    description: Where the releases are.
    type: path
    default: /opt/pi-llm
attributes:
  check_mode:
    support: full
    description: Nothing is written, and the answer is what it would be.
  diff_mode:
    support: none
author:
  - Pi LLM Fleet (@pi-llm-fleet)
"""

EXAMPLES = r"""
- name: Install the release
  appliance_release:
    release: 0.1.0-5d41402a
    archive: /opt/pi-llm/releases/0.1.0-5d41402a.tar
    keep: [releases/0.1.0-9316de66]
"""

RETURN = r"""
removed:
  description: Releases that were removed.
  returned: always
  type: list
  elements: str
"""

PIP_WHEELS = "/usr/share/python-wheels"  # Debian's python3-venv brings pip there


class ReleaseError(Exception):
    """A sentence for who runs the play."""


def install(home: Path, release: str, archive: Path) -> None:
    """Make a whole release, or none. Raises: ReleaseError."""
    folder = home / "releases" / release
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    _unpack(archive, folder)
    archive.unlink()
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], "make a virtual environment")
    python = str(folder / "venv" / "bin" / "python")
    pip = [python, _pip(), "--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    what = ["--find-links", str(folder / "wheels"), "--requirement", str(folder / "requirements.txt")]
    # The list is whole, so nothing is resolved. Compiled afterwards, by all cores, since pip uses one.
    how = ["--no-index", "--no-deps", "--no-compile", "--require-hashes"]
    _run([*pip, "install", *how, *what], "install the wheels")
    _run([python, "-m", "compileall", "-q", "-j", "0", str(folder / "venv" / "lib")], "compile the modules")
    _run([str(folder / "venv" / "bin" / "appliance"), "--version"], "run")
    shutil.rmtree(folder / "wheels")
    os.sync()  # before the mark: it must not reach the disk earlier than what it vouches for
    _mark(folder, release)


def _unpack(archive: Path, folder: Path) -> None:
    """Write the files of the tar. Not extractall: Debian 12's has no `filter` yet, and without one warns on later."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                content, path = tar.extractfile(member), folder / member.name
                if content is None or ".." in path.parts:
                    raise ReleaseError(f"{archive} holds {member.name}, which no release does.")
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content.read())
    except (tarfile.TarError, OSError) as error:
        raise ReleaseError(f"{archive} cannot be unpacked: {error}; the next run copies it again.") from error


def _pip() -> str:
    """pip as a wheel, which Python runs as it is: the environment stays without a pip that nobody will ever use."""
    wheels = sorted(Path(PIP_WHEELS).glob("pip-*.whl"))
    if not wheels:
        raise ReleaseError(
            f"there is no pip in {PIP_WHEELS}; Debian's python3-venv brings it, the role node_base that."
        )
    return f"{wheels[-1]}/pip"


def _run(argv: list[str], what: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONNOUSERSITE": "1"})
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ReleaseError(f"the new release could not {what}: {' '.join(told) or f'exit status {done.returncode}'}")


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _mark(folder: Path, release: str) -> None:
    draft = folder / ".RELEASE.json"
    with draft.open("w") as file:
        json.dump({"release": release, "version": release.rpartition("-")[0], "python": _python()}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.chmod(0o644)
    draft.rename(folder / "RELEASE.json")


def is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "RELEASE.json").read_text())["python"] == _python())
    except (OSError, ValueError, TypeError, KeyError):
        return False


def superfluous(home: Path, keep: list[str]) -> list[str]:
    """Releases that nothing refers to, half ones and tars that killed runs left among them."""
    kept = {Path(name).name for name in keep}
    if (home / "current").is_symlink():
        kept.add(Path(os.readlink(home / "current")).name)
    return sorted(path.name for path in home.glob("releases/*") if path.name not in kept)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Whose controller was killed may still be at it, and the next run is here already: that one waits."""
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clean(leftovers: str) -> None:
    """Remove copies that were cut short in the ssh user's home."""
    user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    shutil.rmtree(Path(pwd.getpwnam(user).pw_dir) / leftovers, ignore_errors=True)


def put(home: Path, release: str, archive: Path, keep: list[str], *, check: bool) -> list[str]:
    """Install the release and remove what is superfluous; returns what was."""
    keep = [*keep, release, archive.name]
    if check:
        return superfluous(home, keep)
    with _alone(home):
        removed = superfluous(home, keep)
        for name in removed:  # first, for an SD card may have room for one more only
            _remove(home / "releases" / name)
        if not is_whole(home / "releases" / release):
            install(home, release, archive)
        archive.unlink(missing_ok=True)  # of a release that another run has installed meanwhile
        return removed


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "keep": {"type": "list", "elements": "str", "default": []},
            "leftovers": {"type": "str", "default": ".ansible/pi-llm-fleet"},
            "home": {"type": "path", "default": "/opt/pi-llm"},
        },
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params
    home, archive = Path(given["home"]), Path(given["archive"])
    os.umask(0o022)  # the service reads this as another user
    try:
        removed = put(home, given["release"], archive, given["keep"], check=module.check_mode)
    except ReleaseError as error:
        module.fail_json(msg=f"appliance_release: {error}")
    except OSError as error:
        module.fail_json(msg=f"appliance_release: {error.filename or home}: {error.strerror}.")
    finally:
        if not module.check_mode:
            clean(given["leftovers"])
    module.exit_json(changed=True, removed=removed)


if __name__ == "__main__":
    main()
