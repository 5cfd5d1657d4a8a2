#!/usr/bin/python
"""Lays a release of the appliance out on a node, beside the one that serves.

A virtual environment names its own path in every script, so it is made where it will stay, and `RELEASE.json`, written
last, says that it is whole: without it a release is none, and is made anew. Which release serves is not its business.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
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
    description: The tar on the node.
    type: path
    required: true
  keep:
    description: Names of other releases that stay, or paths that end in them.
    type: list
    elements: str
    default: []
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
    archive: /opt/pi-llm/0.1.0-5d41402a.tar
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
    folder.mkdir(parents=True, mode=0o755)
    _unpack(archive, folder)
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
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
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


def _mark(folder: Path, release: str) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    draft = folder / ".RELEASE.json"
    with draft.open("w") as file:
        json.dump({"release": release, "version": release.rpartition("-")[0], "python": python}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.chmod(0o644)
    draft.rename(folder / "RELEASE.json")


def superfluous(home: Path, keep: list[str]) -> list[str]:
    """Releases that nothing refers to."""
    kept = {Path(name).name for name in keep}
    if (home / "current").is_symlink():
        kept.add(Path(os.readlink(home / "current")).name)
    return sorted(path.name for path in home.glob("releases/*") if path.name not in kept)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "keep": {"type": "list", "elements": "str", "default": []},
            "home": {"type": "path", "default": "/opt/pi-llm"},
        },
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params
    home, archive = Path(given["home"]), Path(given["archive"])
    removed = superfluous(home, [*given["keep"], given["release"]])
    os.umask(0o022)  # the service reads this as another user
    try:
        if not module.check_mode:
            for name in removed:  # first, for an SD card may have room for one more only
                shutil.rmtree(home / "releases" / name)
            install(home, given["release"], archive)
            for path in archive.parent.glob("*.tar"):  # this one, and what killed runs left
                path.unlink()
    except ReleaseError as error:
        module.fail_json(msg=f"appliance_release: {error}")
    except OSError as error:
        module.fail_json(msg=f"appliance_release: {error.filename or home}: {error.strerror}.")
    module.exit_json(changed=True, removed=removed)


if __name__ == "__main__":
    main()
