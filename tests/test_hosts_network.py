"""Nothing meant for a test host may leave this machine."""

from __future__ import annotations

import pytest

from tests.hosts.machine import Refused
from tests.hosts.network import address_of, first_free, mac_of, require_bridge

pytestmark = pytest.mark.usefixtures("hosts_network")


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
    assert mac_of(address_of(11)) == mac_of("10.99.0.11") == "02:00:0a:63:00:0b"


UPLINK = {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"}


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        ([], "10.99.0.0/24"),
        ([{"type": "blackhole", "dst": "10.99.0.0/24"}], "10.99.1.0/24"),
        ([{"dst": "10.99.0.0/24", "dev": "podman1"}, {"dst": "10.99.1.7", "dev": "wg0"}], "10.99.2.0/24"),
        ([{"dst": "10.0.0.0/8", "dev": "eth0"}], "10.99.0.0/24"),
    ],
    ids=["nothing", "another copy's, without hosts", "a bridge and a tunnel", "a large network around all of them"],
)
def test_the_first_network_that_nothing_else_uses_is_taken(taken: list[dict[str, str]], free: str) -> None:
    assert str(first_free([UPLINK, *taken])) == free


def test_no_free_network_is_a_refusal() -> None:
    with pytest.raises(Refused, match=r"10\.99\.0\.0/24 to 10\.99\.63\.0/24 are all in use"):
        first_free([{"dst": f"10.99.{number}.0/24"} for number in range(64)])
