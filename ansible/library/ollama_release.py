#!/usr/bin/python
"""Lays one release of Ollama beside the others: whole, or not at all.

The decision list of `lay_out`:
1. Remove what runs that were cut short left behind, and releases that are too old to go back to.
2. Compare the archive with its checksum; refuse before anything is unpacked.
3. Unpack into a hidden directory beside the releases and list what is in it.
4. Write everything to the disk, then rename: a release under its own name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_release
short_description: Lay out a release of Ollama beside the others
description:
  - Checks an archive against its sha256, unpacks it under a temporary name and renames it when it is whole.
  - Takes C(.tar.zst), which needs the program zstd, and C(.tgz); which of them it is, the first bytes say.
  - Removes the archive afterwards, whatever came of it, and releases beyond I(keep) before it unpacks.
options:
  archive:
    description: The archive on this machine; C(root/incoming) is the place for it and is removed as well.
    type: path
    required: true
  checksum:
    description: The sha256 of the archive, in hex.
    type: str
    required: true
  release:
    description: The name of the release under C(root/releases).
    type: str
    required: true
  version:
    description: The version to note in RELEASE.json.
    type: str
    required: true
  root:
    description: The directory of the releases.
    type: path
    default: /opt/ollama
  exclude:
    description: Patterns of members of the archive that are not unpacked, as C(tar --exclude) takes them.
    type: list
    elements: str
    default: []
  keep:
    description: How many releases stay beside the new one. The one that C(current) names always stays.
    type: int
    default: 2
  referred:
    description: Names of other releases that always stay, or paths that end in them; they count among I(keep).
    type: list
    elements: str
    default: []
  leftovers:
    description: The folder in the home of the ssh user in which copies from the controller arrive; emptied afterwards.
    type: str
    default: .ansible/pi-llm-fleet
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Lay out the release
  ollama_release:
    archive: /opt/ollama/incoming/96f50a11.archive
    checksum: 96f50a1192133028cf4e010d8c333f8af14b1505db6be7b2034c11487e7fd7e6
    release: 0.34.4-96f50a11
    version: 0.34.4
    exclude: [lib/ollama/cuda_*]
"""

RETURN = r"""
path:
  description: Where the release is.
  type: str
  returned: success
removed:
  description: Releases that were removed.
  type: list
  elements: str
  returned: success
"""

ZSTD = bytes.fromhex("28b52ffd")
GZIP = bytes.fromhex("1f8b")
CHUNK = 1024 * 1024


class ReleaseRefused(Exception):
    """The archive is not what was asked for; nothing was laid out."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(archive: Path, checksum: str) -> None:
    try:
        found = sha256_of(archive)
    except OSError as error:
        raise ReleaseRefused(f"The archive {archive} cannot be read: {error.strerror}.") from error
    if found != checksum.lower():
        raise ReleaseRefused(
            f"The archive {archive} has the sha256 {found}, and {checksum} is pinned. It was removed, nothing was "
            "unpacked. Run again to fetch it anew; if it comes out the same, the pin or the download is wrong."
        )


def decompressor(archive: Path) -> str:
    """The option of tar for an archive, by its first bytes."""
    with archive.open("rb") as file:
        magic = file.read(4)
    if magic == ZSTD:
        return "--zstd"
    if magic[:2] == GZIP:
        return "--gzip"
    raise ReleaseRefused(f"The archive {archive} is neither .tar.zst nor .tgz; which asset does ollama_url name?")


def contents(tree: Path) -> dict[str, int]:
    """Every file and link of a tree with its size."""
    found = (path for path in sorted(tree.rglob("*")) if path.is_symlink() or path.is_file())
    return {str(path.relative_to(tree)): path.lstat().st_size for path in found}


def unpack(module: AnsibleModule, archive: Path, target: Path, exclude: list[str]) -> None:
    target.mkdir(parents=True, mode=0o755)
    excluded = [f"--exclude={form}{pattern}" for pattern in exclude for form in ("", "./")]
    command = ["tar", "--extract", decompressor(archive), "--no-same-owner", "--wildcards", *excluded]
    code, _, error = module.run_command([*command, f"--file={archive}", f"--directory={target}"])
    if code != 0:
        last = error.strip().splitlines()[-1:] or ["tar ended without a word"]
        raise ReleaseRefused(f"{archive} could not be unpacked: {'; '.join(error.strip().splitlines()[:2] or last)}.")
    if not os.access(target / "bin" / "ollama", os.X_OK):
        raise ReleaseRefused(f"{archive} holds no program bin/ollama; which asset does ollama_url name?")


def note(target: Path, version: str, checksum: str, exclude: list[str]) -> None:
    release = {"version": version, "sha256": checksum, "excluded": exclude, "files": contents(target)}
    (target / "RELEASE.json").write_text(json.dumps(release, indent=1) + "\n")


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(made: Path, release: Path) -> None:
    """Rename `made` to `release`; a broken release of that name steps aside first.

    Everything is written to the disk before: a rename may reach it sooner than what was renamed.
    """
    os.sync()
    if release.exists():
        release.rename(made.with_suffix(".broken"))
    made.rename(release)
    sync_directory(release.parent)


def hidden(releases: Path) -> list[Path]:
    """What earlier runs were cut short in."""
    return list(releases.glob(".*"))


def to_remove(releases: Path, new: str, keep: int, referred: list[str]) -> list[Path]:
    """The oldest releases beyond `keep`, never the new one, the current one or one that is referred to."""
    needed = {os.path.basename(os.path.realpath(releases.parent / "current")), *map(os.path.basename, referred)}
    there = [path for path in releases.iterdir() if path.name != new and path.name[0] != "."]
    others = [path for path in there if path.name not in needed]
    newest_first = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    return newest_first[max(keep - (len(there) - len(others)), 0) :]


def clean(archive: Path, root: Path, leftovers: str) -> None:
    """Remove the archive, and what downloads and copies that were cut short left behind."""
    archive.unlink(missing_ok=True)
    shutil.rmtree(root / "incoming", ignore_errors=True)
    user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    shutil.rmtree(Path(pwd.getpwnam(user).pw_dir) / leftovers, ignore_errors=True)


def lay_out(module: AnsibleModule, wanted: dict[str, Any]) -> list[str]:
    """Lay out a release, as the decision list above says.

    Returns: the names of the releases that were removed.
    Raises: ReleaseRefused; then the releases are as they were.
    """
    archive, releases = Path(wanted["archive"]), Path(wanted["root"]) / "releases"
    releases.mkdir(parents=True, exist_ok=True, mode=0o755)
    made = releases / f".{wanted['release']}.partial"
    for path in hidden(releases):
        shutil.rmtree(path)
    verify(archive, wanted["checksum"])
    old = to_remove(releases, wanted["release"], wanted["keep"], wanted["referred"])
    for path in old:
        shutil.rmtree(path)
    try:
        unpack(module, archive, made, wanted["exclude"])
        note(made, wanted["version"], wanted["checksum"], wanted["exclude"])
        put_in_place(made, releases / wanted["release"])
    finally:
        for path in hidden(releases):
            shutil.rmtree(path)
    return [path.name for path in old]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path", "required": True},
            "checksum": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "root": {"type": "path", "default": "/opt/ollama"},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "int", "default": 2},
            "referred": {"type": "list", "elements": "str", "default": []},
            "leftovers": {"type": "str", "default": ".ansible/pi-llm-fleet"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # what lies in the archive without an entry of its own gets its mode from this
    path = str(Path(module.params["root"]) / "releases" / module.params["release"])
    if module.check_mode:
        module.exit_json(changed=True, path=path, removed=[], msg=f"would lay out {path}")
    try:
        removed = lay_out(module, module.params)
    except ReleaseRefused as refusal:
        module.fail_json(msg=str(refusal))
    except OSError as error:
        module.fail_json(msg=f"{path} could not be laid out: {error}.")
    finally:
        clean(Path(module.params["archive"]), Path(module.params["root"]), module.params["leftovers"])
    module.exit_json(changed=True, path=path, removed=removed)


if __name__ == "__main__":
    main()
