"""Nothing meant for a test host may leave this machine."""

from __future__ import annotations

import pytest

from tests.hosts.machine import Refused
from tests.hosts.network import address_of, mac_of, require_bridge


def test_an_address_on_the_bridge_is_taken() -> None:
    require_bridge("10.99.0.11", {"dst": "10.99.0.11", "dev": "podman1"})


def test_the_bridges_own_address_is_taken() -> None:
    require_bridge("10.99.0.1", {"type": "local", "dst": "10.99.0.1", "dev": "lo"})


@pytest.mark.parametrize(
    "route",
    [
        {"dst": "10.99.0.11", "gateway": "192.0.2.1", "dev": "eth0"},
        {"type": "blackhole"},
        {"type": "local", "dev": "lo"},
        None,
    ],
    ids=["uplink", "blackhole", "loopback", "no route"],
)
def test_an_address_that_is_routed_elsewhere_is_refused(route: dict[str, str] | None) -> None:
    with pytest.raises(Refused, match=r"10\.99\.0\.11 is routed to .*, not to podman's bridge"):
        require_bridge("10.99.0.11", route)


@pytest.mark.parametrize("octet", [-1, 0, 1, 255, 256])
def test_a_number_that_no_host_has_is_refused(octet: int) -> None:
    with pytest.raises(Refused, match="2 to 254"):
        address_of(octet)


def test_a_host_has_its_card_for_good() -> None:
    assert (address_of(11), mac_of(11)) == ("10.99.0.11", "02:00:0a:63:00:0b")
