"""What this machine brings: the packages hosts are made with, and its Debian mirror. Knows no hosts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
STATE = PROJECT / ".test-hosts"

# A tool, and the Debian package that has it.
TOOLS = {
    "podman": "podman",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
    "losetup": "mount",
    "zstd": "zstd",
    "/usr/lib/podman/netavark": "netavark",
}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """What was asked for cannot be done here; the sentence says why and what helps."""


def run(command: Sequence[str | Path]) -> str:
    """Run a command to its end and return what it printed.

    Raises: Refused, with the end of what it said on stderr.
    """
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise Refused(f"{' '.join(map(str, command[:4]))} … failed: {done.stderr.strip()[-800:]}")
    return done.stdout


def missing_packages() -> list[str]:
    """The Debian packages to install before hosts can be made."""
    return [package for tool, package in TOOLS.items() if shutil.which(tool, path=SYSTEM_PATH) is None]


def require(missing: Sequence[str], uid: int) -> None:
    """Refuse, in one sentence, when packages are missing or the user is not root."""
    if missing:
        raise Refused(f"test hosts need packages; on Debian: sudo apt-get install {' '.join(missing)}")
    if uid != 0:
        raise Refused("test hosts need root, for their file systems and their bridge; say it again with sudo")


def require_all() -> None:
    require(missing_packages(), os.geteuid())


@dataclass(frozen=True)
class Source:
    """One place that apt fetches from."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def one_line_sources(text: str) -> list[Source]:
    """The sources of a `.list` file."""
    lines = re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)$", text, re.MULTILINE)
    return [Source(uri, (suite,), tuple(components.split())) for uri, suite, components in lines]


def paragraph_sources(text: str) -> list[Source]:
    """The sources of a `.sources` file."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        field = {name.lower(): value.split() for name, value in re.findall(r"^([\w-]+):[ \t]*(.*)$", paragraph, re.M)}
        if "deb" in field.get("types", []) and field.get("enabled") != ["no"]:
            suites, components = tuple(field.get("suites", [])), tuple(field.get("components", []))
            found += [Source(uri, suites, components) for uri in field.get("uris", [])]
    return found


@dataclass(frozen=True)
class Mirror:
    """Where Debian's packages come from on this machine."""

    debian: str
    security: str | None


def choose_mirror(sources: Iterable[Source], codename: str) -> Mirror:
    """The mirror of Debian itself, told from other people's repositories by its suites.

    Raises: Refused, when apt here knows none.
    """
    main = [source for source in sources if "main" in source.components]
    debian = [source.uri for source in main if f"{codename}-updates" in source.suites]
    debian += [source.uri for source in main if codename in source.suites]
    security = [source.uri for source in main if f"{codename}-security" in source.suites]
    if not debian:
        raise Refused(
            f"no Debian mirror for {codename or 'this system'} in /etc/apt; name one: TEST_HOSTS_MIRROR=http://…/debian"
        )
    return Mirror(debian[0].rstrip("/"), security[0].rstrip("/") if security else None)


def mirror() -> Mirror:
    """The mirror this machine itself uses, or the one in TEST_HOSTS_MIRROR."""
    if named := os.environ.get("TEST_HOSTS_MIRROR"):
        return Mirror(named.rstrip("/"), None)
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.M))
    codename = release.get("VERSION_CODENAME", "") if release.get("ID") == "debian" else ""
    sources: list[Source] = []
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.exists():
            sources += one_line_sources(path.read_text())
        if path.suffix == ".sources":
            sources += paragraph_sources(path.read_text())
    return choose_mirror(sources, codename)


def apt_settings() -> str:
    """apt's settings here that say how mirrors are reached: proxies, and whether their clock is trusted."""
    dump = run(["apt-config", "dump", "Acquire"])
    wanted = re.compile(r'^Acquire::(?:https?::(?:[^:]+::)?Proxy|Check-Valid-Until|Check-Date)\b.* "[^"]+";$', re.I)
    lines = [line for line in dump.splitlines() if wanted.match(line)]
    for scheme in ("http", "https"):
        if proxy := os.environ.get(f"{scheme}_proxy"):
            lines.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    return "".join(f"{line}\n" for line in lines)


def sentence(command: Callable[[], None]) -> None:
    """Run a command without any package but Python's own; a refusal is its last word."""
    try:
        command()
    except Refused as refusal:
        sys.exit(f"Error: {refusal}")


if __name__ == "__main__":
    sentence(require_all)
