#!/usr/bin/python
"""Reads, in one task, what the appliance's role must know of a node before it changes anything. Changes nothing.

Decides nothing: what is refused, and with which words, the role's preflight says.
"""

from __future__ import annotations

import grp
import hmac
import json
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: appliance_state
short_description: Read what the appliance's role must know of a node
description:
  - Platform, releases on the disk, who listens on the service's port, and how pepper and keys stand, all in one task.
options:
  home:
    description: Where the releases are.
    type: path
    default: /opt/pi-llm
  host:
    description: The address that the service shall listen on.
    type: str
    required: true
  port:
    description: The port that the service shall listen on.
    type: int
    required: true
  unit:
    description: The service's own unit, which may hold the port.
    type: str
    default: pi-llm.service
  database:
    description: The file of the keys.
    type: path
    default: /var/lib/pi-llm/api_keys.db
  pepper_file:
    description: The file of the pepper.
    type: path
    default: /etc/pi-llm/pepper
  pepper:
    description: The pepper of the inventory, or nothing.
    type: str
    default: ""
  user:
    description: The user of the service.
    type: str
    default: pi-llm
  directories:
    description: Directories that the service needs, each with path, owner and mode.
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - Pi LLM Fleet (@pi-llm-fleet)
"""

EXAMPLES = r"""
- name: Look at the node
  appliance_state:
    host: 0.0.0.0
    port: 8000
  register: appliance__state
"""

RETURN = r"""
platform:
  description: Machine and Python of the node, as the wheelhouse names them.
  returned: always
  type: str
  sample: aarch64-3.13
releases:
  description: Releases that are complete and made for this Python.
  returned: always
  type: list
  elements: str
  sample: [0.1.0-5d41402a]
free_mib:
  description: MiB that are free on the disk of C(home).
  returned: always
  type: int
port_taken_by:
  description: The program that listens on the port and is not the service, or nothing.
  returned: always
  type: str
  sample: nginx (process 812)
has_user:
  description: Whether the user of the service exists.
  returned: always
  type: bool
has_unit:
  description: Whether the unit is installed.
  returned: always
  type: bool
lacking_directories:
  description: Those of O(directories) that are not there, or not as they should be.
  returned: always
  type: list
  elements: dict
has_pepper:
  description: Whether the node has a pepper.
  returned: always
  type: bool
is_other_pepper:
  description: Whether the inventory names a pepper and the node has another one.
  returned: always
  type: bool
has_own_keys:
  description: Whether working keys were made on this node; under another pepper they would be worthless.
  returned: always
  type: bool
"""

LISTENING = "0A"  # a state in /proc/net/tcp
ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104  compared with, not listened on

# The fleet's keys come back with a sync and the probe's with a probe; only others would be lost.
OWN_KEYS = "select 1 from api_keys where source is null and revoked_at is null limit 1"
ASK_KEYS = """
import sqlite3, sys
with sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True) as db:
    print(db.execute(sys.argv[2]).fetchone() is not None)
"""


def has_user(name: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


def is_as_wanted(directory: dict[str, str]) -> bool:
    """Whether a directory has the owner, group and mode that it should."""
    try:
        status = os.stat(directory["path"])
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return False
    return (owner, group, stat.S_IMODE(status.st_mode)) == (
        directory["owner"],
        directory["owner"],
        int(directory["mode"], 8),
    )


class Listener(NamedTuple):
    """A socket that waits for connections."""

    address: str
    inode: str


def releases(home: Path) -> list[str]:
    """Those whose last file was written and whose Python is this one; after an upgrade of Debian an old one is not."""
    found = []
    for mark in sorted(home.glob("releases/*/RELEASE.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            if json.loads(mark.read_text())["python"] == _python() and (mark.parent / "venv/bin/appliance").is_file():
                found.append(mark.parent.name)
    return found


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


# ------------------------------------------------------------------------------------------------------------ the port


def port_taken_by(host: str, port: int, unit: str) -> str:
    """Who else listens where the service shall, or nothing."""
    inodes = {listener.inode for listener in _listeners(port) if _overlaps(listener.address, host)}
    holders = {_holder(pid) for pid in _processes_with(inodes) if not _belongs_to(pid, unit)} if inodes else set()
    return ", ".join(sorted(holders))


def _overlaps(address: str, host: str) -> bool:
    """Whether both cannot listen at once. A name could be any address."""
    return address in ANY or host in ANY or not _is_address(host) or ip_address(address) == ip_address(host)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _listeners(port: int) -> Iterator[Listener]:
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", name).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, found_port = fields[1].partition(":")
                if fields[3] == LISTENING and int(found_port, 16) == port:
                    yield Listener(_address(address), fields[9])


def _address(text: str) -> str:
    """The kernel prints addresses as words of 32 bits in the machine's own order."""
    raw = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return str(ip_address(raw))


def _processes_with(inodes: set[str]) -> Iterator[int]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(_target(link) in wanted for link in (folder / "fd").iterdir()):
                yield int(folder.name)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _belongs_to(pid: int, unit: str) -> bool:
    try:
        return f"/{unit}" in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return True  # it is gone


def _holder(pid: int) -> str:
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid})"
    except OSError:
        return f"process {pid}"


# ------------------------------------------------------------------------------------------------------ pepper and keys


def is_other_pepper(file: Path, pepper: str) -> bool:
    if not pepper or not file.exists():
        return False
    return not hmac.compare_digest(file.read_bytes().strip(), pepper.encode().strip())


def has_own_keys(database: Path) -> bool:
    """Asked as the file's owner: SQLite makes files beside it, and root's would shut the service out."""
    if not database.is_file():
        return False
    status = database.stat()
    asked = subprocess.run(
        [sys.executable, "-c", ASK_KEYS, str(database), OWN_KEYS],
        user=status.st_uid,
        group=status.st_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() != "False" and "no such table" not in asked.stderr  # unreadable: better not to lose any


# ---------------------------------------------------------------------------------------------------------------- disk


def free_mib(path: Path) -> int:
    """MiB that are free where a path is, or would be."""
    while not path.exists():
        path = path.parent
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize // 2**20


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "default": "/opt/pi-llm"},
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "unit": {"type": "str", "default": "pi-llm.service"},
            "database": {"type": "path", "default": "/var/lib/pi-llm/api_keys.db"},
            "pepper_file": {"type": "path", "default": "/etc/pi-llm/pepper"},
            "pepper": {"type": "str", "default": "", "no_log": True},
            "user": {"type": "str", "default": "pi-llm"},
            "directories": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    pepper_file = Path(given["pepper_file"])
    module.exit_json(
        changed=False,
        platform=f"{os.uname().machine}-{_python()}",
        releases=releases(Path(given["home"])),
        free_mib=free_mib(Path(given["home"])),
        port_taken_by=port_taken_by(given["host"], given["port"], given["unit"]),
        has_user=has_user(given["user"]),
        has_unit=Path("/etc/systemd/system", given["unit"]).exists(),
        lacking_directories=[directory for directory in given["directories"] if not is_as_wanted(directory)],
        has_pepper=pepper_file.exists(),
        is_other_pepper=is_other_pepper(pepper_file, given["pepper"]),
        has_own_keys=has_own_keys(Path(given["database"])),
    )


if __name__ == "__main__":
    main()
