#!/usr/bin/python
"""Reads, in one task, everything about a machine that decides whether it can become a node. Changes nothing.

What is enough is not decided here, the role's preflight does; only hints about a Pi's power and cooling, which refuse
nothing, are put into words on the spot.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: machine_facts
short_description: Read what decides whether a machine can become a node
description:
  - Operating system, architecture, Python, memory, room on its disks, clock, packages, the lock of the package manager,
    CPU governor, swap and, on a Raspberry Pi, board, power and cooling, all in one task.
  - Returned as facts. RV(ansible_facts.architecture) and RV(ansible_facts.python_version) are named as the C(setup)
    module does; the rest is in RV(ansible_facts.machine).
  - Warns about undervoltage, throttling, a weak power supply and a missing fan.
options:
  room:
    description: Directories with the MiB that will be kept there; what they hold already counts.
    type: dict
    default: {}
  packages:
    description: Packages to look for.
    type: list
    elements: str
    default: []
  controller_time_s:
    description: The controller's clock when the task began, in seconds since 1970.
    type: float
    required: true
  package_lock_wait_s:
    description: Seconds to wait for another package manager to end.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author: Pi LLM Fleet
"""

EXAMPLES = r"""
- name: Look at the machine
  machine_facts:
    room: {/opt: 2000}
    packages: [zstd]
    controller_time_s: "{{ now().timestamp() }}"
"""

RETURN = r"""
ansible_facts:
  description: What the machine is.
  returned: always
  type: dict
  contains:
    architecture: {description: As uname says., type: str, returned: always, sample: aarch64}
    python_version: {description: Of the Python that runs modules., type: str, returned: always, sample: 3.13.5}
    machine: {description: Everything else., type: dict, returned: always}
"""

CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")
LOCK = Path("/var/lib/dpkg/lock-frontend")
DPKG_UPDATES = Path("/var/lib/dpkg/updates")
JOURNAL_SETTINGS = Path("/etc/systemd/journald.conf.d/pi-llm.conf")
GOVERNOR_UNIT = Path("/etc/systemd/system/pi-llm-governor.service")
ZRAM_SETTINGS = Path("/etc/systemd/zram-generator.conf.d/pi-llm.conf")
UNITS = Path("/run/systemd/units")  # systemd keeps a link here for each unit that runs, as old as its start
TIMEX_BYTES, TIME_ERROR = 512, 5  # struct timex is 208 bytes; adjtimex(2)
THROTTLED = {
    0: "undervoltage now: use the official 27 W supply (5 V, 5 A) and its own cable",
    16: "undervoltage since it started: use the official 27 W supply (5 V, 5 A) and its own cable",
    1: "its clock is capped now",
    2: "it is throttled now: it needs cooling",
    18: "it was throttled since it started: it needs cooling",
    3: "it is at its soft temperature limit now: it needs cooling",
}
MIB = 2**20


def content(path: Path | str) -> bytes | None:
    """A small file of the kernel; None when there is none."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def text(path: Path | str) -> str | None:
    """The same as text, without the line's end."""
    found = content(path)
    return None if found is None else found.rstrip(b"\n\0").decode(errors="replace")


def output(*command: str) -> str | None:
    """What a program prints; None when it is missing or fails."""
    found = shutil.which(command[0], path="/usr/bin:/usr/sbin:/bin:/sbin")
    if found is None:
        return None
    environment = {"LC_ALL": "C", "PATH": "/usr/bin:/usr/sbin:/bin:/sbin"}
    try:
        done = subprocess.run([found, *command[1:]], capture_output=True, text=True, timeout=20, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def operating_system() -> dict[str, Any]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return {
        "os_id": release.get("ID", ""),
        "os_version": release.get("VERSION_ID", ""),
        "os_name": release.get("PRETTY_NAME", "an unknown system"),
        "package_architecture": output("dpkg", "--print-architecture"),
        "init": text("/proc/1/comm"),
    }


def memory_mib() -> dict[str, int]:
    """MiB as the kernel counts them: somewhat less than the label on the board."""
    rows = (line.split() for line in (text("/proc/meminfo") or "").splitlines())
    kib = {row[0].rstrip(":"): int(row[1]) for row in rows}
    return {"memory_mib": kib.get("MemTotal", 0) // 1024, "memory_available_mib": kib.get("MemAvailable", 0) // 1024}


def held_mib(folder: Path) -> int:
    """MiB that the files of a folder occupy."""
    blocks = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                blocks += os.lstat(os.path.join(place, name)).st_blocks
            except OSError:
                continue
    return blocks * 512 // MIB


def existing(path: Path) -> Path:
    """The path, or the folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def disks(room: dict[str, int]) -> list[dict[str, Any]]:
    """For each file system, in MiB: what is free, what is to come into the folders on it, and what is spare then."""
    found: dict[int, dict[str, Any]] = {}
    for name, wanted_mib in room.items():
        folder = existing(Path(name))
        usage = os.statvfs(folder)
        disk = found.setdefault(
            os.stat(folder).st_dev,
            {"folders": [], "free_mib": usage.f_bavail * usage.f_frsize // MIB, "needed_mib": 0},
        )
        disk["folders"].append(name)
        disk["needed_mib"] += max(0, int(wanted_mib) - held_mib(Path(name)))
    return [{**disk, "spare_mib": disk["free_mib"] - disk["needed_mib"]} for disk in found.values()]


def is_clock_synchronized() -> bool | None:
    """What the kernel was told by whoever keeps its clock; None when it does not say."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


def missing(packages: Iterable[str]) -> list[str]:
    """Those that are not installed."""
    wanted = list(packages)
    if not wanted:
        return []
    listed = output("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n") or ""
    return [package for package in wanted if f"\n{package} installed\n" not in f"\n{listed}\n"]


def half_installed() -> list[str]:
    """Packages that a cut caught while they were unpacked; dpkg refuses to configure them, they must come anew."""
    listed = output("dpkg-query", "--show", "--showformat=${db:Status-Eflag} ${binary:Package}\n") or ""
    return [line.split()[1] for line in listed.splitlines() if line.startswith("reinstreq ")]


def is_dpkg_interrupted() -> bool:
    """Whether dpkg was killed at its work; apt refuses to go on then, and looks at the same names."""
    return DPKG_UPDATES.is_dir() and any(path.name.isdigit() for path in DPKG_UPDATES.iterdir())


def lock_holder() -> str | None:
    """The program that installs packages at this moment, if one does. Asks without taking the lock."""
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with LOCK.open("rb") as file:
            answer = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, question))
    except OSError:
        return None
    if answer[0] == fcntl.F_UNLCK:
        return None
    return f"{text(f'/proc/{answer[4]}/comm') or 'a program'} (process {answer[4]})"


def lock_holder_after(wait_s: int) -> str | None:
    end = time.monotonic() + wait_s
    while (holder := lock_holder()) and time.monotonic() < end:
        time.sleep(min(2.0, wait_s))
    return holder


def governor() -> dict[str, Any]:
    """The CPU's governor, and whether it is ours to change; a container shows it and does not let it be changed."""
    setting = CPU / "scaling_governor"
    return {
        "governor": text(setting),
        "governors": (text(CPU / "scaling_available_governors") or "").split(),
        "governor_writable": setting.exists() and os.access(setting, os.W_OK),
        "has_governor_unit": GOVERNOR_UNIT.exists(),
    }


def swap() -> dict[str, Any]:
    rows = [line.split() for line in (text("/proc/swaps") or "").splitlines()[1:]]
    return {
        "swaps": [row[0] for row in rows],
        "has_zram_settings": ZRAM_SETTINGS.exists(),
        "has_zram_swap": any(row[0].startswith("/dev/zram") for row in rows),
        "zram_possible": output("systemd-detect-virt", "--container") is None  # the kernel is not a container's to set
        and (
            Path("/sys/class/zram-control").exists()
            or Path(f"/lib/modules/{os.uname().release}/kernel/drivers/block/zram").exists()
        ),
    }


def started(unit: str) -> float | None:
    """When a unit started, in seconds since 1970; None when it does not run."""
    try:
        return os.lstat(UNITS / f"invocation:{unit}").st_mtime
    except OSError:
        return None


def services() -> dict[str, Any]:
    journal = started("systemd-journald.service")
    settings = JOURNAL_SETTINGS.stat().st_mtime if JOURNAL_SETTINGS.exists() else None
    return {
        "has_journal_settings": settings is not None,
        "journal_is_older_than_its_settings": None not in (journal, settings) and settings > journal,  # type: ignore[operator]
        "serves": started("pi-llm.service") is not None,
    }


def board() -> dict[str, Any]:
    """What a Raspberry Pi says of itself; nulls elsewhere."""
    bits = output("vcgencmd", "get_throttled")
    supply = content("/proc/device-tree/chosen/power/max_current")
    cooling = [text(path) or "" for path in Path("/sys/class/thermal").glob("cooling_device*/type")]
    temperature = text("/sys/class/thermal/thermal_zone0/temp")
    return {
        "board": text("/proc/device-tree/model"),
        "throttled": bits.partition("=")[2] if bits else None,
        "supply_ma": int.from_bytes(supply, "big") if supply else None,
        "has_fan": any("fan" in kind for kind in cooling),
        "bounds_memory": "memory" in (text("/sys/fs/cgroup/cgroup.controllers") or "").split(),
        "temperature_c": int(temperature) / 1000 if temperature and temperature.lstrip("-").isdigit() else None,
    }


def hints(machine: dict[str, Any]) -> list[str]:
    """What a person should know about a Pi's power and cooling; each a sentence."""
    model = machine["board"] or ""
    if not model.startswith("Raspberry Pi"):
        return []
    bits = int(machine["throttled"] or "0", 0)
    found = [what for bit, what in THROTTLED.items() if bits & 1 << bit]
    if machine["supply_ma"] and machine["supply_ma"] < 5000 and " 5" in model:
        found.append(f"its supply offers {machine['supply_ma']} mA; a Pi 5 under load wants 5000 (the 27 W supply)")
    if not machine["has_fan"] and " 5" in model:
        found.append("it has no fan that it knows of; without an active cooler a Pi 5 throttles within minutes")
    if not machine["bounds_memory"]:
        found.append(
            "its kernel bounds no memory, so ollama_memory_max and appliance_memory_max do nothing: add "
            "cgroup_enable=memory to the line in /boot/firmware/cmdline.txt and restart it"
        )
    if any(name.startswith("/var/swap") or "mmcblk" in name for name in machine["swaps"]):
        found.append("it swaps to its SD card, which wears it out: node_base_swap: zram swaps to memory")
    return [f"{os.uname().nodename} ({model}): {what}." for what in found]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "room": {"type": "dict", "default": {}},
            "packages": {"type": "list", "elements": "str", "default": []},
            "controller_time_s": {"type": "float", "required": True},
            "package_lock_wait_s": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    clock_offset_s = time.time() - module.params["controller_time_s"]
    machine = {
        **operating_system(),
        **memory_mib(),
        **governor(),
        **swap(),
        **services(),
        **board(),
        "bits": struct.calcsize("P") * 8,
        "is_root": os.geteuid() == 0,
        "disks": disks(module.params["room"]),
        "clock_offset_s": round(clock_offset_s, 1),
        "clock_synchronized": is_clock_synchronized(),
        "missing_packages": missing(module.params["packages"]),
        "has_python_apt": importlib.util.find_spec("apt") is not None,
        "package_lock_holder": lock_holder_after(module.params["package_lock_wait_s"]),
        "half_installed_packages": half_installed(),
        "dpkg_interrupted": is_dpkg_interrupted(),  # after the wait: while dpkg works it looks the same
    }
    for hint in hints(machine):
        module.warn(hint)
    facts = {
        "architecture": os.uname().machine,
        "python_version": platform.python_version(),
        "machine": machine,
    }
    module.exit_json(changed=False, ansible_facts=facts)


if __name__ == "__main__":
    main()
