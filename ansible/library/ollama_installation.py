#!/usr/bin/python
"""Reads what of Ollama is on a machine: our releases, what others installed, and who holds the port.

Changes nothing. It decides nothing either: the role's preflight judges what is found.
"""

from __future__ import annotations

import json
import os
import platform
import pwd
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_installation
short_description: Read what of Ollama is on a machine
description:
  - Reads the releases that M(ollama_release) laid out, the unit and the binaries that something else installed, and who
    listens on the port. One task instead of a dozen.
options:
  root:
    description: The directory of the releases.
    type: path
    default: /opt/ollama
  port:
    description: The TCP port that Ollama is to listen on.
    type: int
    required: true
  version:
    description: The version that is wanted.
    type: str
    required: true
  checksums:
    description: The sha256 of its archive in hex, for each architecture.
    type: dict
    default: {}
  directories:
    description: Directories to look for.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Look at what is there
  ollama_installation:
    port: 11434
    version: 0.34.4
    checksums: {aarch64: 96f50a1192133028cf4e010d8c333f8af14b1505db6be7b2034c11487e7fd7e6}
  register: found
"""

RETURN = r"""
machine:
  description: What C(uname -m) says.
  type: str
  returned: always
  sample: aarch64
has_nvidia:
  description: Whether a driver of NVIDIA is loaded.
  type: bool
  returned: always
has_zstd:
  description: Whether the zstd program is there, which .tar.zst needs.
  type: bool
  returned: always
has_python_apt:
  description: Whether the module apt of Python is there, without which Ansible can install no package in check mode.
  type: bool
  returned: always
releases:
  description: Each release under C(root), with what is wrong with it; an empty text when it is whole.
  type: dict
  returned: always
  sample: {0.34.4-96f50a11: ""}
release:
  description: The release that is wanted, C(<version>-<8 hex of the checksum>).
  type: str
  returned: always
  sample: 0.34.4-96f50a11
is_whole:
  description: Whether that release is there, and whole.
  type: bool
  returned: always
free_mib:
  description: MiB that are free on the disk of C(root), with what runs that were cut short left there: it goes first.
  type: int
  returned: always
lacking:
  description: Those of C(directories) that are not there.
  type: list
  elements: str
  returned: always
current:
  description: The release that the link C(current) names; empty without one.
  type: str
  returned: always
has_own_unit:
  description: Whether the unit ollama.service is the one that starts what lies under C(root).
  type: bool
  returned: always
foreign_unit:
  description: The unit file of an Ollama that is not under C(root); empty when there is none.
  type: str
  returned: always
  sample: /etc/systemd/system/ollama.service
foreign_binaries:
  description: Programs called ollama that are not ours.
  type: list
  elements: str
  returned: always
  sample: [/usr/local/bin/ollama]
user_home:
  description: The home of the user ollama; empty without such a user.
  type: str
  returned: always
listener:
  description: The process that listens on the port; empty when nothing does.
  type: dict
  returned: always
  sample: {pid: 812, process: nginx, unit: nginx.service}
is_outdated:
  description: Whether the service does not run, or runs since before its unit, settings or release changed.
  type: bool
  returned: always
"""

UNIT = "ollama.service"
UNIT_DIRS = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
BINARIES = ("/usr/local/bin/ollama", "/usr/bin/ollama", "/bin/ollama")
LISTEN = "0A"


def release_problem(release: Path) -> str:
    """What is wrong with a release, by the list of files that it was laid out with; "" when it is whole."""
    try:
        files: dict[str, int] = json.loads((release / "RELEASE.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no readable RELEASE.json"
    for name, size in files.items():
        try:
            status = os.lstat(release / name)
        except OSError:
            return f"{name} is missing"
        if status.st_size != size:
            return f"{name} has {status.st_size} bytes instead of {size}"
    return ""


def releases(root: Path) -> dict[str, str]:
    try:
        names = sorted(path.name for path in (root / "releases").iterdir() if not path.name.startswith("."))
    except OSError:
        return {}
    return {name: release_problem(root / "releases" / name) for name in names}


def free_mib(root: Path) -> int:
    """MiB that are free where the releases are, or would be; with leftovers, which go before anything comes."""
    there = root
    while not there.exists():
        there = there.parent
    usage = os.statvfs(there)
    leftovers = [root / "incoming", *(root / "releases").glob(".*")]
    blocks = sum(blocks_of(path) for folder in leftovers for path in folder.rglob("*"))
    return (usage.f_bavail * usage.f_frsize + blocks * 512) // 2**20


def blocks_of(path: Path) -> int:
    """Of 512 bytes; none of what another playbook has just taken away."""
    try:
        return path.lstat().st_blocks
    except OSError:
        return 0


def release_name(version: str, checksums: dict[str, str], machine: str) -> str:
    return f"{version}-{str(checksums.get(machine) or '').lower()[:8]}"


def current(root: Path) -> str:
    try:
        return Path(os.readlink(root / "current")).name
    except OSError:
        return ""


def unit_file(directories: tuple[str, ...] = UNIT_DIRS) -> Path | None:
    """The unit file that systemd reads: the first one."""
    return next((path for path in (Path(directory) / UNIT for directory in directories) if path.is_file()), None)


def is_own(unit: Path, root: Path) -> bool:
    return re.search(rf"^ExecStart={re.escape(str(root))}/", read(unit), re.MULTILINE) is not None


def foreign_binaries(root: Path, candidates: tuple[str, ...] = BINARIES) -> list[str]:
    found: dict[str, str] = {}
    for candidate in candidates:
        real = os.path.realpath(candidate)
        if os.path.isfile(real) and not real.startswith(f"{root}/"):
            found.setdefault(real, candidate)
    return list(found.values())


def listening_inodes(port: int, tables: list[str]) -> set[str]:
    """The inodes of the sockets that listen on a port, out of the text of /proc/net/tcp and tcp6."""
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return {row[9] for row in rows if len(row) > 9 and row[3] == LISTEN and int(row[1].rsplit(":", 1)[1], 16) == port}


def unit_of(cgroups: str) -> str:
    """The service in the text of /proc/PID/cgroup, of either version of cgroups; "" outside of any."""
    match = re.search(r"/([^/\n]+\.service)(?:/|$)", cgroups, re.MULTILINE)
    return match.group(1) if match else ""


def read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def holds(process: Path, sockets: set[str]) -> bool:
    try:
        return any(os.readlink(link) in sockets for link in (process / "fd").iterdir())
    except OSError:  # it ended, or is a thread of the kernel
        return False


def listener(port: int, proc: Path = Path("/proc")) -> dict[str, Any]:
    """The process that listens on a port, with its unit; {} when nothing listens."""
    inodes = listening_inodes(port, [read(proc / "net" / name) for name in ("tcp", "tcp6")])
    if not inodes:
        return {}
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in proc.iterdir():
        if process.name.isdecimal() and holds(process, sockets):
            name = read(process / "comm").strip()
            return {"pid": int(process.name), "process": name, "unit": unit_of(read(process / "cgroup"))}
    return {"pid": 0, "process": "a process that cannot be seen", "unit": ""}


def started_at(pid: int, proc: Path = Path("/proc")) -> float:
    """When a process started, in seconds since 1970; 0 when there is none.

    Source: proc(5), field 22 of /proc/PID/stat in clock ticks since the boot, and btime of /proc/stat.
    """
    fields = read(proc / str(pid) / "stat").rpartition(")")[2].split()
    boot = re.search(r"^btime (\d+)$", read(proc / "stat"), re.MULTILINE)
    if len(fields) < 20 or not boot:
        return 0.0
    return int(boot.group(1)) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_outdated(root: Path, main_pid: int) -> bool:
    """Whether what is on the disk changed since the service started, or it does not run.

    btime is a whole number of seconds, so a change in the second of the start counts as later: a restart too many is
    cheaper than one too few.
    """
    started = started_at(main_pid)
    etc = Path("/etc/systemd/system")
    read_at_start = [root / "current", etc / UNIT, etc / f"{UNIT}.d" / "fleet.conf"]
    return any(os.path.lexists(path) and os.lstat(path).st_ctime > started for path in read_at_start) or not started


def user_home() -> str:
    try:
        return pwd.getpwnam("ollama").pw_dir
    except KeyError:
        return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/ollama"},
            "port": {"type": "int", "required": True},
            "version": {"type": "str", "required": True},
            "checksums": {"type": "dict", "default": {}},
            "directories": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    root, unit = Path(module.params["root"]), unit_file()
    has_own_unit = unit is not None and is_own(unit, root)
    machine, found = platform.machine(), releases(root)
    release = release_name(module.params["version"], module.params["checksums"], machine)
    _, shown, _ = module.run_command(["systemctl", "show", "--property=MainPID", "--value", UNIT])
    module.exit_json(
        changed=False,
        machine=machine,
        has_nvidia=os.path.exists("/proc/driver/nvidia/version") or os.path.exists("/dev/nvidiactl"),
        has_zstd=shutil.which("zstd") is not None,
        has_python_apt=find_spec("apt") is not None,
        releases=found,
        release=release,
        is_whole=found.get(release) == "",
        free_mib=free_mib(root),
        current=current(root),
        lacking=[path for path in module.params["directories"] if not os.path.isdir(path)],
        has_own_unit=has_own_unit,
        foreign_unit="" if unit is None or has_own_unit else str(unit),
        foreign_binaries=foreign_binaries(root),
        user_home=user_home(),
        listener=listener(module.params["port"]),
        is_outdated=is_outdated(root, int(shown.strip() or 0)),
    )


if __name__ == "__main__":
    main()
