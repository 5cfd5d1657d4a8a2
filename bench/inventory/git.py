"""One commit of the files that a tune wrote, and of nothing else; only where it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gevent import subprocess


class CommitFailed(Exception):
    """git did not make the commit; the files are written all the same."""


def commit(paths: Sequence[Path], message: str) -> str:
    """Commit these paths as they are now, whatever else is staged. Returns: the commit's short name.

    Raises: CommitFailed.
    """
    folder = paths[0].parent
    names = [str(path.resolve()) for path in paths]
    _git(folder, "add", "--intent-to-add", "--", *names)
    _git(folder, "commit", "--quiet", "--message", message, "--", *names)
    return _git(folder, "rev-parse", "--short", "HEAD").strip()


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise CommitFailed(f"--commit: git cannot be run: {error.strerror}.") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise CommitFailed(f"--commit: `git {arguments[0]}` failed in {folder}: {said}")
    return str(done.stdout)
