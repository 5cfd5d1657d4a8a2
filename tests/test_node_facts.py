"""What a machine says of itself is read from its kernel's files, as they are on a Pi 5, on a PC, in a locked room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance import machine
from appliance.machine import VCGENCMD, Throttling

TREE = "sys/firmware/devicetree/base"
FIRMWARE = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware"
POLICY = "sys/devices/system/cpu/cpufreq/policy0"
MEMINFO = "MemTotal:        8256608 kB\nMemAvailable:    5120000 kB\nSwapTotal:  1048576 kB\nSwapFree:  524288 kB\n"
VMSTAT = "nr_free_pages 600000\npswpin 12\npswpout 345\npgfault 9\n"
PSI = "some avg10=1.50 avg60=0.75 avg300=0.10 total=195146\nfull avg10=0.50 avg60=0.25 avg300=0.00 total=182112\n"
PI5 = {
    f"{TREE}/model": "Raspberry Pi 5 Model B Rev 1.1\0",
    f"{TREE}/chosen/power/max_current": b"\x00\x00\x13\x88",
    f"{TREE}/chosen/bootloader/build-timestamp": b"\x67\x89\x9b\x00",
    f"{TREE}/chosen/bootloader/version": "26826259c8a6a1d1f0ab8d51a1d4ba7e7ad7f0b5\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "52350\n",
    f"{POLICY}/scaling_cur_freq": "2400000\n",
    f"{POLICY}/cpuinfo_max_freq": "2400000\n",
    f"{POLICY}/scaling_governor": "performance\n",
    f"{FIRMWARE}/get_throttled": "0\n",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
    "sys/class/hwmon/hwmon2/name": "pwmfan\n",
    "sys/class/hwmon/hwmon2/fan1_input": "3120\n",
    "proc/meminfo": MEMINFO,
    "proc/vmstat": VMSTAT,
    "proc/pressure/memory": PSI,
    "proc/sys/kernel/random/boot_id": "f34ae6c7-0359-4f12-b174-570e5eae34ee\n",
    "etc/os-release": 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
}


def put(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def pi5(tmp_path: Path) -> Path:
    put(tmp_path, PI5)
    driver = tmp_path / machine.FIRMWARE
    driver.mkdir(parents=True)
    (driver / "soc@107c000000:firmware").symlink_to(tmp_path / FIRMWARE)
    return tmp_path


def test_a_pi_5_says_what_it_is(pi5: Path) -> None:
    board = machine.board(pi5)
    assert (board.name, board.memory_mib) == ("Raspberry Pi 5 Model B Rev 1.1", 8063)
    assert (board.firmware, board.supply_ma) == ("2025-01-16 26826259", 5000)
    assert board.os == "Debian GNU/Linux 13 (trixie)"


def test_a_pi_5_says_how_it_is(pi5: Path) -> None:
    found = machine.read(pi5, pi5)
    assert (found.temperature_c, found.governor, found.fan_rpm) == (52.4, "performance", 3120)
    assert (found.clocks.now, found.clocks.max, found.clocks.measured) == ([2400], 2400, None)
    assert found.boot_id == "f34ae6c7-0359-4f12-b174-570e5eae34ee"
    assert found.throttling == Throttling(bits="0x0", now=[], since_boot=None, source="kernel")


def test_memory_is_told_with_its_swapping_and_its_pressure(pi5: Path) -> None:
    memory = machine.memory(pi5)
    assert (memory.total_mib, memory.available_mib) == (8063, 5000)
    assert (memory.swap_total_mib, memory.swap_used_mib) == (1024, 512)
    assert (memory.pages_swapped_in, memory.pages_swapped_out) == (12, 345)
    assert memory.pressure == {"some_avg10": 1.5, "some_avg60": 0.75, "full_avg10": 0.5, "full_avg60": 0.25}


def test_a_machine_that_lets_nothing_be_read_makes_nulls_and_no_error(tmp_path: Path) -> None:
    found = machine.read(tmp_path, tmp_path)
    assert (found.board.name, found.board.firmware, found.board.os) == (None, None, None)
    assert (found.temperature_c, found.throttling, found.governor, found.fan_rpm) == (None, None, None, None)
    assert (found.memory.available_mib, found.memory.pages_swapped_in, found.memory.pressure) == (None, None, None)
    assert (found.clocks.now, found.clocks.max, found.boot_id) == ([], None, None)
    assert found.board.memory_mib  # by a system call
    assert found.storage is not None
    assert found.storage.kind is None


@pytest.mark.parametrize("junk", ["", "\n", "unknown\n", "\0\xff\n", "12 34\n"])
def test_files_with_something_else_in_them_make_nulls(pi5: Path, junk: str) -> None:
    put(pi5, dict.fromkeys(PI5, junk))
    found = machine.read(pi5, pi5)
    assert (found.temperature_c, found.clocks.now, found.fan_rpm) == (None, [], None)
    assert (found.throttling, found.memory.pressure) == (None, None)


@pytest.mark.parametrize(
    ("bits", "now"),
    [
        ("50005", ["undervoltage", "throttled"]),
        ("50000", ["undervoltage", "throttled"]),
        ("80008", ["soft_temperature_limit"]),
    ],
)
def test_what_the_kernel_remembers_is_of_the_last_two_seconds_and_so_now(pi5: Path, bits: str, now: list[str]) -> None:
    put(pi5, {f"{FIRMWARE}/get_throttled": f"{bits}\n"})
    assert machine.throttling(pi5) == Throttling(bits=f"0x{bits}", now=now, since_boot=None, source="kernel")


def test_what_the_firmware_remembers_is_since_boot(pi5: Path) -> None:
    put(pi5, {VCGENCMD: "throttled=0xd0008\nfrequency(0)=1500345728\n"})
    assert machine.throttling(pi5) == Throttling(
        bits="0xd0008",
        now=["soft_temperature_limit"],
        since_boot=["undervoltage", "throttled", "soft_temperature_limit"],
        source="firmware",
    )
    assert machine.clocks(pi5).measured == 1500


def test_what_was_written_down_long_ago_is_not_believed(pi5: Path) -> None:
    put(pi5, {VCGENCMD: "throttled=0x50005\n"})
    os.utime(pi5 / VCGENCMD, (1_000_000, 1_000_000))
    throttling = machine.throttling(pi5)
    assert throttling is not None
    assert (throttling.source, throttling.now) == ("kernel", [])


def test_a_kernel_without_the_bits_still_knows_of_undervoltage(pi5: Path) -> None:
    (pi5 / FIRMWARE / "get_throttled").unlink()
    put(pi5, {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n"})
    assert machine.throttling(pi5) == Throttling(bits="0x1", now=["undervoltage"], since_boot=None, source="hwmon")


def test_the_temperature_is_the_processors_wherever_it_stands(tmp_path: Path) -> None:
    zones = {"0": ("acpitz", "27800"), "1": ("nvme", "90000"), "2": ("x86_pkg_temp", "61000")}
    for zone, (kind, millidegrees) in zones.items():
        folder = f"sys/class/thermal/thermal_zone{zone}"
        put(tmp_path, {f"{folder}/type": kind, f"{folder}/temp": millidegrees})
    assert machine.temperature_c(tmp_path) == 61.0


def test_cores_with_different_clocks_and_governors_are_all_told(pi5: Path) -> None:
    other = POLICY.replace("policy0", "policy4")
    put(pi5, {f"{other}/scaling_cur_freq": "1800000", f"{other}/scaling_governor": "ondemand"})
    assert (machine.clocks(pi5).now, machine.governor(pi5)) == ([2400, 1800], "ondemand, performance")


def test_a_pc_is_named_by_its_maker(tmp_path: Path) -> None:
    dmi = "sys/class/dmi/id"
    put(tmp_path, {f"{dmi}/sys_vendor": "LENOVO\n", f"{dmi}/product_name": "20XW\n", f"{dmi}/bios_version": "N32\n"})
    board = machine.board(tmp_path)
    assert (board.name, board.firmware) == ("LENOVO 20XW", "N32")


MOUNTS = """\
28 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw
40 28 0:31 / /var rw,noatime - btrfs /dev/nvme0n1p1 rw
41 40 8:1 / /var/lib/with\\040space rw - ext4 /dev/sda1 rw
42 28 0:40 / /var rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/home/pi", ("179:2", "/dev/mmcblk0p2", "ext4")),
        ("/variable", ("179:2", "/dev/mmcblk0p2", "ext4")),
        ("/var/lib/with space/x", ("8:1", "/dev/sda1", "ext4")),
        ("/var/lib", ("0:40", "tmpfs", "tmpfs")),
    ],
)
def test_a_path_is_on_the_innermost_and_latest_mount(path: str, mount: tuple[str, str, str]) -> None:
    assert machine.mount_of(MOUNTS, Path(path)) == mount


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("platform/axi/1000fff000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0/mmcblk0p2", "sd"),
        ("platform/axi/1000110000.pcie/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p1", "nvme"),
        ("platform/axi/1000120000.pcie/usb2/2-1/2-1:1.0/host0/target0:0:0/0:0:0:0/block/sda/sda1", "usb"),
        ("pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda1", "ata"),
        ("virtual/block/zram0", "virtual"),
    ],
)
def test_storage_is_told_by_what_it_hangs_on(tmp_path: Path, place: str, kind: str) -> None:
    device = tmp_path / "sys/devices" / place
    device.mkdir(parents=True)
    numbers = tmp_path / "sys/dev/block"
    numbers.mkdir(parents=True)
    (numbers / "179:2").symlink_to(device)
    put(tmp_path, {"proc/self/mountinfo": f"28 1 179:2 / / rw - ext4 /dev/{device.name} rw\n"})
    storage = machine.storage(tmp_path, tmp_path)
    assert storage is not None
    assert (storage.kind, storage.device, storage.file_system) == (kind, device.name, "ext4")
    assert 0 < storage.free_mib <= storage.total_mib


def test_soldered_flash_is_no_sd_card(tmp_path: Path) -> None:
    card = tmp_path / "sys/devices/platform/mmc_host/mmc0/mmc0:0001"
    (card / "block/mmcblk0/mmcblk0p2").mkdir(parents=True)
    (card / "type").write_text("MMC\n")
    by_name = tmp_path / "sys/class/block"
    by_name.mkdir(parents=True)
    (by_name / "mmcblk0p2").symlink_to(card / "block/mmcblk0/mmcblk0p2")
    put(tmp_path, {"proc/self/mountinfo": "28 1 0:31 / / rw - btrfs /dev/mmcblk0p2 rw\n"})
    storage = machine.storage(tmp_path, tmp_path)
    assert storage is not None
    assert storage.kind == "emmc"
