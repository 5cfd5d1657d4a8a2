"""Which addresses are test hosts: those on podman's bridge here, never one for which a packet leaves the machine.

Each copy of the project on a machine has a network of its own, 10.99.N.0/24, so that what one left running is not in
the way of another.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tests.hosts.image import locked
from tests.hosts.machine import STATE, Refused, run

NETWORKS = [ipaddress.ip_network(f"10.99.{number}.0/24") for number in range(64)]
OCTETS = range(2, 255)
CHOSEN = STATE / "subnet"


def first_free(routes: Iterable[Mapping[str, Any]]) -> ipaddress.IPv4Network:
    """The first network that no route of this machine leads into, but such as lead to much else too.

    Raises: Refused, when there is none.
    """
    taken = [ipaddress.ip_network(route["dst"]) for route in routes if route["dst"] != "default"]
    narrow = [network for network in taken if network.prefixlen >= NETWORKS[0].prefixlen]
    for network in NETWORKS:
        if not any(network.overlaps(other) for other in narrow):
            return network
    raise Refused(f"{NETWORKS[0]} to {NETWORKS[-1]} are all in use on this machine; `ip route` shows by what")


@functools.cache
def subnet() -> ipaddress.IPv4Network:
    """The network of this copy of the project: chosen once, and written down."""
    with locked("subnet"):
        if not CHOSEN.exists():
            part = CHOSEN.with_suffix(".part")
            part.write_text(str(first_free(json.loads(run(["ip", "-json", "-4", "route", "show"])))))
            part.rename(CHOSEN)
    return ipaddress.IPv4Network(CHOSEN.read_text())


def gateway() -> str:
    """The bridge's own address."""
    return str(subnet()[1])


def address_of(octet: int) -> str:
    """The address with this last number."""
    if octet not in OCTETS:
        raise Refused(f"OCTET is {octet}, but test hosts have {OCTETS[0]} to {OCTETS[-1]}")
    return str(subnet()[octet])


def mac_of(address: str) -> str:
    """A host's card keeps its number over power cuts, so that nobody waits for a stale ARP entry."""
    return ":".join(["02:00", *(f"{byte:02x}" for byte in ipaddress.ip_address(address).packed)])


def keep_in(network: str) -> None:
    """Before the first host boots: without the bridge, what is meant for hosts goes nowhere, not to the uplink."""
    run(["ip", "route", "replace", "blackhole", network, "metric", "4000"])


def give_up() -> None:
    """Nothing of this copy's network is left."""
    if CHOSEN.exists():
        run(["ip", "route", "flush", "type", "blackhole", CHOSEN.read_text()])
        CHOSEN.unlink()


def require_bridge(address: str, route: Mapping[str, Any] | None) -> None:
    """Refuse an address that the kernel would not reach over podman's bridge."""
    device = str((route or {}).get("dev", "nothing"))
    local = (route or {}).get("type") == "local" and address == gateway()
    if not device.startswith("podman") and not local:
        raise Refused(f"{address} is routed to {device}, not to podman's bridge: no test host runs there")


def require_on_bridge(address: str) -> None:
    """Refuse an address that is not on podman's bridge now."""
    try:
        routes = json.loads(run(["ip", "-json", "route", "get", address]))
    except Refused:
        routes = []
    require_bridge(address, routes[0] if routes else None)


def wait_for_ssh(address: str, timeout_s: float = 60.0) -> None:
    """Return when SSH answers there.

    Raises: Refused, when it does not within `timeout_s` seconds, or the address is not on the bridge.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        require_on_bridge(address)
        try:
            with socket.create_connection((address, 22), timeout=1) as connection:
                if connection.recv(3) == b"SSH":
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise Refused(f"no SSH on {address} after {timeout_s:g} s; see: python -m tests.hosts log NAME")
