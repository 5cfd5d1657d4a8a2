"""What role node_base refuses, and in which words; what its files say."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import roles

sys.path.insert(0, str(roles.ROOT / "ansible" / "library"))
import baseline
import machine_facts

PI = {
    "is_root": True,
    "os_id": "debian",
    "os_version": "13",
    "os_name": "Debian GNU/Linux 13 (trixie)",
    "bits": 64,
    "package_architecture": "arm64",
    "init": "systemd",
    "memory_mib": 8064,
    "disks": [{"folders": ["/var/lib", "/opt"], "free_mib": 20000, "needed_mib": 3600, "spare_mib": 16400}],
    "clock_offset_s": 0.3,
    "package_lock_holder": None,
    "has_zram_settings": False,
    "has_zram_swap": False,
    "zram_possible": True,
    "governor": "ondemand",
    "governors": ["ondemand", "performance"],
    "governor_writable": True,
}


def problems(architecture: str = "aarch64", python_version: str = "3.13.5", **found: Any) -> list[str]:
    facts = {"architecture": architecture, "python_version": python_version, "machine": {**PI, **found}}
    check = {"ansible_facts": facts, "ansible_check_mode": False, "inventory_hostname": "pi1"}
    return roles.evaluate("node_base", "node_base__problems", None, **check)


def test_a_pi_5_may_be_a_node():
    assert problems() == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"is_root": False}, ["root", "sudo"]),
        (
            {"os_id": "ubuntu", "os_version": "24.04", "os_name": "Ubuntu 24.04"},
            ["Ubuntu 24.04", "Debian 12 (bookworm)"],
        ),
        ({"os_version": "11", "os_name": "Debian 11"}, ["Debian 11", "Debian 13 (trixie)"]),
        ({"architecture": "armv7l"}, ["armv7l", "aarch64", "x86_64"]),
        ({"bits": 32, "package_architecture": "armhf"}, ["32-bit (armhf)", "64-bit"]),
        ({"python_version": "3.9.2"}, ["3.9.2", "3.11 to 3.13"]),
        ({"python_version": "3.14.0"}, ["3.14.0", "3.11 to 3.13"]),
        ({"init": "tini"}, ["tini", "systemd"]),
        ({"memory_mib": 2000}, ["2000 MiB", "3500", "node_base_memory_min_mib"]),
        ({"clock_offset_s": -86400.0}, ["86400.0 s behind", "at most 60", "set-ntp"]),
        ({"clock_offset_s": 61.0}, ["61.0 s ahead of"]),
        ({"package_lock_holder": "apt-get (process 7)"}, ["apt-get (process 7)", "300 s"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_machine_that_cannot_be_a_node_is_told_why_and_what_helps(found, words):
    (sentence,) = problems(**found)
    assert [word for word in words if word not in sentence] == []


def test_a_full_disk_is_named_with_what_is_needed():
    full = {"folders": ["/opt"], "free_mib": 900, "needed_mib": 1500, "spare_mib": -600}
    (sentence,) = problems(disks=[*PI["disks"], full])
    assert sentence == (
        "the disk of /opt has 900 MiB free; 2012 are needed (1500 to install, 512 in reserve). Free some, or use a "
        "larger card."
    )


def test_a_disk_that_holds_all_already_may_be_full():
    assert problems(disks=[{"folders": ["/opt"], "free_mib": 10, "needed_mib": 0, "spare_mib": 10}]) == []


def test_all_that_is_wrong_is_said_at_once():
    assert len(problems(memory_mib=1, init="tini", architecture="i686")) == 3


def test_a_cpu_without_the_governor_is_left_alone():
    facts = {"machine": {**PI, "governors": ["userspace"]}}
    assert roles.evaluate("node_base", "node_base__governor_possible", None, ansible_facts=facts) is False


def test_the_governor_unit_sets_what_was_chosen_and_puts_back_what_was():
    unit = roles.render("node_base", "etc/systemd/system/pi-llm-governor.service", node_base_cpu_governor="ondemand")
    assert "echo ondemand >" in unit
    assert "ExecStop=" in unit
    assert "before >" in unit


def test_a_journal_of_0_mib_is_journalds_to_bound():
    text = roles.render("node_base", "etc/systemd/journald.conf.d/pi-llm.conf", node_base_journal_max_mib=0)
    assert "MaxUse" not in text
    assert "SystemMaxUse=200M" in roles.render("node_base", "etc/systemd/journald.conf.d/pi-llm.conf")


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"throttled": "0x50000"}, "undervoltage since"),
        ({"throttled": "0x4"}, "throttled now"),
        ({"supply_ma": 3000}, "3000 mA"),
        ({"has_fan": False}, "active cooler"),
        ({"swaps": ["/var/swap"]}, "SD card"),
        ({"bounds_memory": False}, "cgroup_enable=memory"),
    ],
)
def test_a_pi_with_weak_power_or_cooling_is_warned_of(found, word):
    pi5 = {
        "board": "Raspberry Pi 5 Model B Rev 1.1",
        "throttled": "0x0",
        "supply_ma": 5000,
        "has_fan": True,
        "bounds_memory": True,
        "swaps": [],
    }
    assert machine_facts.hints(pi5) == []
    assert any(word in hint for hint in machine_facts.hints({**pi5, **found}))


def test_a_machine_that_is_no_pi_is_warned_of_nothing():
    assert (
        machine_facts.hints({"board": None, "throttled": None, "supply_ma": None, "has_fan": False, "swaps": []}) == []
    )


def test_what_a_folder_holds_already_need_not_be_free(tmp_path):
    (tmp_path / "model").write_bytes(b"x" * 3 * 2**20)
    (disk,) = machine_facts.disks({str(tmp_path): 10, str(tmp_path / "absent" / "deeper"): 5})
    assert disk["needed_mib"] == 7 + 5
    assert disk["spare_mib"] == disk["free_mib"] - 12


def test_a_folder_goes_with_the_file_it_was_made_for(tmp_path):
    ours, other = tmp_path / "ours" / "a.conf", tmp_path / "shared" / "a.conf"
    for file in (ours, other, other.with_name("people.conf")):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert baseline.leftover([str(ours), str(other)], []) == [str(ours.parent), str(other)]
    assert baseline.leftover([str(ours)], [str(ours.parent)]) == [str(ours)]


def test_a_baseline_is_written_whole_and_for_root_alone(tmp_path):
    path = tmp_path / "state" / "baseline.json"
    baseline.record(path, {"format": 1})
    assert [entry.name for entry in path.parent.iterdir()] == ["baseline.json"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_package_that_was_cut_off_while_unpacked_is_named(monkeypatch):
    said = "ok adduser\nreinstreq libc6:arm64\nok apt\n"
    monkeypatch.setattr(machine_facts, "output", lambda *_: said)
    assert machine_facts.half_installed() == ["libc6:arm64"]


def test_a_dpkg_that_was_interrupted_is_seen_by_what_it_left(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_facts, "DPKG_UPDATES", tmp_path)
    (tmp_path / "tmp.i").touch()
    assert not machine_facts.is_dpkg_interrupted()
    (tmp_path / "0000").touch()
    assert machine_facts.is_dpkg_interrupted()
