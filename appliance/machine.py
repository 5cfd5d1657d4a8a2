"""What this machine is and how it is at this moment, as its kernel says it: board, clocks, throttling, memory, storage.

Owns the places and the formats of the kernel's files. Everything is read below `root`, without a subprocess; what a
machine does not have, or does not let this service read, is None. Must not know: the engine, HTTP, settings.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

MIB = 2**20
TIMESTAMP_BYTES = 4
ROOT = Path("/")
SHARE = re.compile(r"(avg10|avg60)=([0-9.]+)")
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled; bit n + 16 remembers bit n.
THROTTLE_BITS = {0: "undervoltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature_limit"}
REMEMBERED = 16
# The link has the same name on every Pi; the device below has not (soc:firmware, soc@107c000000:firmware …).
FIRMWARE = "sys/bus/platform/drivers/raspberrypi-firmware"
# What `vcgencmd get_throttled` and `vcgencmd measure_clock arm` printed, where root has them written down every few
# seconds: the firmware's own memory, which this service may not ask.
VCGENCMD = "run/pi-llm-board/vcgencmd"
VCGENCMD_AGE_S = 15.0
CPU_ZONES = ("cpu-thermal", "cpu_thermal", "x86_pkg_temp", "k10temp", "soc-thermal", "acpitz")
SMBIOS_NAMES = ("sys_vendor", "product_name")


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while the machine runs."""

    name: str | None
    architecture: str
    cores: int
    memory_mib: int | None
    kernel: str
    firmware: str | None
    os: str | None
    supply_ma: int | None


class Throttling(msgspec.Struct, frozen=True, kw_only=True):
    """A Raspberry Pi's throttle bits.

    bits: as `vcgencmd get_throttled` has them.
    now: what of it is true now; of the kernel's bits, within its last 2 seconds.
    since_boot: what was true at any time; None where only the kernel is asked, which forgets every 2 seconds.
    source: "firmware", "kernel", or "hwmon", which knows of undervoltage alone.
    """

    bits: str
    now: list[str]
    since_boot: list[str] | None
    source: str


class Clocks(msgspec.Struct, frozen=True, kw_only=True):
    """In MHz. `now` has an entry for each group of cores that share a clock, as the kernel has set it; what a Pi's
    firmware makes of it is `measured`, where root has it written down, or shows in the throttle bits alone."""

    now: list[int]
    max: int | None
    measured: int | None


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """kind: sd, emmc, nvme, usb, ata, virtual, or None where it cannot be told."""

    path: str
    device: str | None
    kind: str | None
    file_system: str | None
    total_mib: int
    free_mib: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """pages_swapped_in, _out: since boot. pressure: share of time (%) in which some or all tasks waited for memory."""

    total_mib: int | None
    available_mib: int | None
    swap_total_mib: int | None
    swap_used_mib: int | None
    pages_swapped_in: int | None
    pages_swapped_out: int | None
    pressure: dict[str, float] | None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    board: Board
    temperature_c: float | None
    clocks: Clocks
    throttling: Throttling | None
    governor: str | None
    fan_rpm: int | None
    memory: Memory
    storage: Storage | None
    uptime_s: int
    boot_id: str | None


def read(state: Path, root: Path = ROOT) -> Machine:
    """All of it. May block as long as a disk does, so never call it from the hub.

    state: where this service keeps its data; its storage is told of.
    """
    return Machine(
        board=board(root),
        temperature_c=temperature_c(root),
        clocks=clocks(root),
        throttling=throttling(root),
        governor=governor(root),
        fan_rpm=fan_rpm(root),
        memory=memory(root),
        storage=storage(state, root),
        uptime_s=round(time.clock_gettime(time.CLOCK_BOOTTIME)),
        boot_id=text(root / "proc/sys/kernel/random/boot_id"),
    )


def content(path: Path) -> bytes | None:
    """A small file of the kernel; None where there is none, or none to read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def text(path: Path) -> str | None:
    found = content(path)
    return None if found is None else found.rstrip(b"\n\0").decode(errors="replace")


def number(path: Path, base: int = 10) -> int | None:
    try:
        return int(text(path) or "", base)
    except ValueError:
        return None


def board(root: Path) -> Board:
    tree = root / "sys/firmware/devicetree/base"
    supply = content(tree / "chosen/power/max_current")
    return Board(
        name=text(tree / "model") or _smbios_name(root),
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        memory_mib=_meminfo(root).get("MemTotal", _memory_of_sysconf()),
        kernel=platform.release(),
        firmware=_firmware(root),
        os=os_name(text(root / "etc/os-release") or ""),
        supply_ma=int.from_bytes(supply, "big") if supply else None,
    )


def _smbios_name(root: Path) -> str | None:
    names = [text(root / "sys/class/dmi/id" / name) for name in SMBIOS_NAMES]
    return " ".join(name for name in names if name) or None


def _memory_of_sysconf() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB


def _firmware(root: Path) -> str | None:
    """A Pi's bootloader by its date and commit; elsewhere the BIOS's version."""
    loader = root / "sys/firmware/devicetree/base/chosen/bootloader"
    built = content(loader / "build-timestamp")
    if built is None or len(built) != TIMESTAMP_BYTES:
        return text(root / "sys/class/dmi/id/bios_version")
    date = datetime.fromtimestamp(int.from_bytes(built, "big"), UTC)
    return f"{date:%Y-%m-%d} {(text(loader / 'version') or '')[:8]}".strip()


def os_name(os_release: str) -> str | None:
    """PRETTY_NAME of an os-release file."""
    for line in os_release.splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return value.strip("\"'")
    return None


def temperature_c(root: Path) -> float | None:
    """The processor's, from the thermal zone that is named for it, or else from the first there is."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_zone_rank)
    for zone in zones:
        millidegrees = number(zone / "temp")
        if millidegrees is not None:
            return round(millidegrees / 1000, 1)
    return None


def _zone_rank(zone: Path) -> tuple[int, str]:
    kind = text(zone / "type")
    return CPU_ZONES.index(kind) if kind in CPU_ZONES else len(CPU_ZONES), zone.name


def clocks(root: Path) -> Clocks:
    policies = list(_policies(root))
    now = [khz for policy in policies if (khz := number(policy / "scaling_cur_freq")) is not None]
    highest = [khz for policy in policies if (khz := number(policy / "cpuinfo_max_freq")) is not None]
    measured = vcgencmd(root).get("frequency", "")
    return Clocks(
        now=[round(khz / 1000) for khz in now],
        max=round(max(highest) / 1000) if highest else None,
        measured=round(int(measured) / 1_000_000) if measured.isdigit() else None,
    )


def governor(root: Path) -> str | None:
    """Of all cores; names joined by a comma where they differ."""
    names = {name for policy in _policies(root) if (name := text(policy / "scaling_governor"))}
    return ", ".join(sorted(names)) or None


def _policies(root: Path) -> Iterator[Path]:
    yield from sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))


def throttling(root: Path) -> Throttling | None:
    """The bits, from the best source there is.

    1. The firmware's own, where they are written down (VCGENCMD): they remember everything since boot.
    2. The kernel's copy. It asks the firmware every 2 s and has it forget, so its remembered bits mean those 2 s. Not
       every kernel has the file.
    3. The kernel's undervoltage alarm, the only one that kernels other than Raspberry Pi's have.
    """
    said = vcgencmd(root).get("throttled")
    if (bits := _hex(said)) is not None:
        return Throttling(bits=hex(bits), now=_names(bits), since_boot=_names(bits >> REMEMBERED), source="firmware")
    for path in (root / FIRMWARE).glob("*/get_throttled"):
        if (bits := _hex(text(path))) is not None:
            names = _names(bits | bits >> REMEMBERED)
            return Throttling(bits=hex(bits), now=names, since_boot=None, source="kernel")
    alarm = next(_hwmon(root, "rpi_volt", "in0_lcrit_alarm"), None)
    if alarm is None:
        return None
    return Throttling(bits=hex(alarm), now=_names(alarm), since_boot=None, source="hwmon")


def _hex(said: str | None) -> int | None:
    try:
        return int(said or "", 16)
    except ValueError:
        return None


def _names(bits: int) -> list[str]:
    return [name for bit, name in THROTTLE_BITS.items() if bits & 1 << bit]


def vcgencmd(root: Path) -> dict[str, str]:
    """What vcgencmd printed, by name ("throttled", "frequency"); nothing where it was not written down lately."""
    path = root / VCGENCMD
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        return {}
    if abs(age_s) > VCGENCMD_AGE_S:
        return {}
    pairs = (line.partition("=") for line in (text(path) or "").splitlines())
    return {name.partition("(")[0]: value.strip() for name, _, value in pairs}


def fan_rpm(root: Path) -> int | None:
    return next(_hwmon(root, "pwmfan", "fan1_input"), None)


def _hwmon(root: Path, driver: str, file: str) -> Iterator[int]:
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if text(folder / "name") == driver and (value := number(folder / file)) is not None:
            yield value


def memory(root: Path) -> Memory:
    mib = _meminfo(root)
    vmstat = columns(text(root / "proc/vmstat") or "")
    has_swap = "SwapTotal" in mib and "SwapFree" in mib
    return Memory(
        total_mib=mib.get("MemTotal", _memory_of_sysconf()),
        available_mib=mib.get("MemAvailable"),
        swap_total_mib=mib.get("SwapTotal"),
        swap_used_mib=mib["SwapTotal"] - mib["SwapFree"] if has_swap else None,
        pages_swapped_in=vmstat.get("pswpin"),
        pages_swapped_out=vmstat.get("pswpout"),
        pressure=pressure(text(root / "proc/pressure/memory") or ""),
    )


def _meminfo(root: Path) -> dict[str, int]:
    """In MiB."""
    return {name: kib // 1024 for name, kib in columns(text(root / "proc/meminfo") or "").items()}


def columns(table: str) -> dict[str, int]:
    """Lines of a name and a number, as in meminfo and vmstat."""
    rows = (line.split() for line in table.splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def pressure(psi: str) -> dict[str, float] | None:
    """A file of /proc/pressure: "some avg10=0.00 avg60=…" to {"some_avg10": 0.0, …}."""
    found: dict[str, float] = {}
    for line in psi.splitlines():
        kind = line.partition(" ")[0]
        found |= {f"{kind}_{name}": float(value) for name, value in SHARE.findall(line)}
    return found or None


def storage(path: Path, root: Path) -> Storage | None:
    try:
        usage = os.statvfs(path)
    except OSError:
        return None
    mount = mount_of(text(root / "proc/self/mountinfo") or "", path.resolve())
    device = mount and _block_device(root, *mount[:2])
    return Storage(
        path=str(path),
        device=device.name if device else None,
        kind=_kind(device, root) if device else None,
        file_system=mount[2] if mount else None,
        total_mib=usage.f_blocks * usage.f_frsize // MIB,
        free_mib=usage.f_bavail * usage.f_frsize // MIB,
    )


def mount_of(mountinfo: str, path: Path) -> tuple[str, str, str] | None:
    """Device number, source and file system of the mount that holds `path`; the last line that fits best is on top."""
    best, found = -1, None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, source, *_) = left.split(), [*right.split(), "", ""]
        point = fields[4].encode().decode("unicode_escape")
        if path.is_relative_to(point) and len(point) >= best:
            best, found = len(point), (fields[2], source, kind)
    return found


def _block_device(root: Path, device_number: str, source: str) -> Path | None:
    """Its folder in sysfs: by number, or by name where the file system has a number of its own (btrfs, overlay)."""
    for folder in (root / "sys/dev/block" / device_number, root / "sys/class/block" / Path(source).name):
        if folder.exists():
            return folder.resolve()
    return None


def _kind(device: Path, root: Path) -> str | None:
    """By its place among the machine's devices."""
    place = "/".join(device.relative_to(root.resolve()).parts)
    if "mmc" in place:
        card = next((folder for folder in device.parents if (folder / "type").exists()), None)
        return "emmc" if card and text(card / "type") == "MMC" else "sd"
    kinds = {"/usb": "usb", "/nvme": "nvme", "/ata": "ata", "/virtio": "virtual", "/virtual/": "virtual"}
    return next((kind for part, kind in kinds.items() if part in place), None)
