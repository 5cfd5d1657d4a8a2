"""Which addresses are test hosts: those on podman's bridge here, never one for which a packet leaves the machine."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from tests.hosts.machine import Refused, run

SUBNET = "10.99.0.0/24"
GATEWAY = "10.99.0.1"
OCTETS = range(2, 255)


def address_of(octet: int) -> str:
    """The address with this last number."""
    if octet not in OCTETS:
        raise Refused(f"OCTET is {octet}, but the hosts of {SUBNET} have {OCTETS[0]} to {OCTETS[-1]}")
    return f"10.99.0.{octet}"


def mac_of(octet: int) -> str:
    """A host's card keeps its number over power cuts, so that nobody waits for a stale ARP entry."""
    return f"02:00:0a:63:00:{octet:02x}"


def keep_in() -> None:
    """Before the first host boots: without the bridge, what is meant for hosts goes nowhere, not to the uplink."""
    run(["ip", "route", "replace", "blackhole", SUBNET, "metric", "4000"])


def require_bridge(address: str, route: Mapping[str, Any] | None) -> None:
    """Refuse an address that the kernel would not reach over podman's bridge."""
    device = str((route or {}).get("dev", "nothing"))
    local = (route or {}).get("type") == "local" and address == GATEWAY
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
