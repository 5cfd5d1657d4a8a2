"""What hosts need of this machine is found, or named with its remedy."""

from __future__ import annotations

import pytest

from tests.hosts.machine import (
    PROJECT,
    TOOLS,
    Mirror,
    Refused,
    Source,
    choose_mirror,
    one_line_sources,
    paragraph_sources,
    require,
)

PARAGRAPHS = """\
Types: deb
# a comment between
URIs: http://one.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib

Types: deb
URIs: http://two.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm bookworm-updates
Components: main
"""
LINES = """\
# deb http://commented.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/x.gpg arch=amd64] http://other.example/apt bookworm main
deb http://one.example/debian bookworm main
deb http://one.example/debian bookworm-updates main
deb-src http://one.example/debian bookworm main
"""


def test_missing_packages_are_named_in_one_command() -> None:
    with pytest.raises(Refused, match=r"sudo apt-get install podman debootstrap$"):
        require(["podman", "debootstrap"], uid=0)


def test_without_root_it_says_so() -> None:
    with pytest.raises(Refused, match="need root"):
        require([], uid=1000)


def test_a_machine_that_has_all_is_taken() -> None:
    require([], uid=0)


def test_the_gate_installs_every_package_that_is_asked_for() -> None:
    gate = (PROJECT / ".ci/run").read_text().split()
    assert [package for package in TOOLS.values() if package not in gate and f"{package};" not in gate] == []


def test_the_mirror_is_read_from_paragraphs() -> None:
    found = choose_mirror(paragraph_sources(PARAGRAPHS), "bookworm")
    assert found == Mirror("http://one.example/debian", "http://two.example/debian-security")


def test_the_mirror_is_read_from_lines_and_told_from_other_repositories() -> None:
    assert choose_mirror(one_line_sources(LINES), "bookworm") == Mirror("http://one.example/debian", None)


def test_a_disabled_mirror_is_not_read() -> None:
    assert not [source for source in paragraph_sources(PARAGRAPHS) if "off" in source.uri]


def test_a_system_without_a_debian_mirror_is_told_how_to_name_one() -> None:
    with pytest.raises(Refused, match="TEST_HOSTS_MIRROR="):
        choose_mirror([Source("http://x.example/ubuntu", ("noble",), ("main",))], "")
