"""A disk of some kilobytes, for a process that is to find it full."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNSHARE = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount"]
MOUNT = 'mkdir -p "$1" && mount -t tmpfs -o "size=$2" none "$1"'


def on_small_disk(folder: Path, size: str, script: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """Run this shell script, with these arguments, where `folder` is a disk of its own that nobody else sees."""
    command = [*UNSHARE, "sh", "-c", f"{MOUNT} && shift 2 && {script}", "sh", str(folder), size, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


def require_small_disks(folder: Path) -> None:
    """Skip where this machine lets us mount none."""
    with on_small_disk(folder, "16k", "true") as tried:
        tried.communicate()
    if tried.returncode:
        pytest.skip("this machine lets us mount no small disk")
