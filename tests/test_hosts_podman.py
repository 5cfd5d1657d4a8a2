"""A host is made with its limits."""

from __future__ import annotations

import pytest

from tests.hosts.machine import Refused
from tests.hosts.podman import Disk, Found, Host, require_free, run_arguments

pytestmark = pytest.mark.usefixtures("hosts_network")
HOST = Host("pi1", "trixie", 11, memory="512m", tasks=300, disks=(Disk("/var/lib/ollama", 64),))


def test_limits_are_given_to_podman() -> None:
    arguments = run_arguments(HOST, "image")
    assert {"--memory=512m", "--memory-swap=512m", "--pids-limit=300", "--ip=10.99.0.11"} <= set(arguments)


def test_no_limit_is_given_where_none_is_asked_for() -> None:
    arguments = run_arguments(Host("pi1", "trixie", 11), "image")
    assert not [word for word in arguments if word.startswith(("--memory", "--volume"))]


def test_the_image_comes_last() -> None:
    assert run_arguments(HOST, "image")[-1] == "image"


def test_a_disk_is_mounted_where_it_is_asked_for() -> None:
    volumes = [word for word in run_arguments(HOST, "image") if word.startswith("--volume")]
    assert [volume.rpartition(":")[2] for volume in volumes] == ["/var/lib/ollama"]


@pytest.mark.parametrize("text", ["", "/var", "/var=", "/var=0", "/var=64M", "var=64", "/var=-1"])
def test_a_disk_that_is_not_written_right_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="DIR=MIB"):
        Disk.parse(text)


def test_an_address_that_another_host_has_is_refused() -> None:
    with pytest.raises(Refused, match=r"10\.99\.0\.11 is the address of other"):
        require_free(HOST, [Found("other", "trixie", "10.99.0.11", "running")])


def test_a_host_may_take_the_place_of_itself() -> None:
    require_free(HOST, [Found("pi1", "bookworm", "10.99.0.11", "exited")])
