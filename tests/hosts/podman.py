"""One host's life: made, cut off from power, switched on, paused, removed. podman has a storage of its own for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.hosts import image
from tests.hosts.machine import PROJECT, STATE, Refused, require_all, run, sentence
from tests.hosts.network import address_of, gateway, give_up, keep_in, mac_of, require_on_bridge, subnet, wait_for_ssh

NETWORK = "pi-test-hosts"
# Not beside the rest of the state: paths of sockets are short, and what runs is gone after this machine's reboot.
RUN = Path("/run") / f"pi-test-{hashlib.sha256(str(PROJECT).encode()).hexdigest()[:8]}"
KNOWN_HOSTS = STATE / "known_hosts"
DISKS = STATE / "disks"
# What systemd's sandboxes, reboots and limits need beyond podman's own set.
CAPABILITIES = "SYS_ADMIN,NET_ADMIN,SYS_BOOT,SYS_PTRACE,SYS_RESOURCE,SYS_NICE,IPC_LOCK,AUDIT_WRITE,MKNOD"
SSH_OPTIONS = (
    "-i",
    str(image.KEY),
    "-o",
    f"UserKnownHostsFile={KNOWN_HOSTS}",
    "-o",
    "StrictHostKeyChecking=yes",
    "-o",
    "BatchMode=yes",
    "-o",
    "LogLevel=ERROR",
)
SETTINGS = {
    # crun of Debian 12 refuses hybrid cgroups; a container has no session with systemd to make cgroups for it.
    # More open files than this are refused where the machine's own limit is low.
    "containers.conf": f"""
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=32768:32768"]
[network]
network_backend = "netavark"
network_config_dir = "{STATE}/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "{RUN}/engine"
""",
    "storage.conf": f"""
[storage]
driver = "overlay"
graphroot = "{STATE}/graph"
runroot = "{RUN}/run"
""",
}


@dataclass(frozen=True)
class Disk:
    """A small file system of its own, mounted at `directory` in the host."""

    directory: str
    size_mib: int

    @classmethod
    def parse(cls, text: str) -> Disk:
        """`/var/lib/ollama=64` is 64 MiB for that directory."""
        directory, _, size = text.partition("=")
        if not directory.startswith("/") or not size.isdecimal() or int(size) < 1:
            raise Refused(f"--disk is {text!r}, but it is written DIR=MIB, as in /var/lib/ollama=64")
        return cls(directory, int(size))

    def mount_point(self, host: str) -> Path:
        return DISKS / host / self.directory.strip("/").replace("/", "-")


@dataclass(frozen=True)
class Host:
    """What a test host is made of. `memory` is podman's notation (512m), `tasks` the most processes and threads."""

    name: str
    release: str
    octet: int
    memory: str | None = None
    tasks: int = 4096
    disks: tuple[Disk, ...] = ()

    @property
    def address(self) -> str:
        return address_of(self.octet)


def command() -> list[str]:
    """podman with this project's storage, network and settings, apart from any other podman on the machine."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    for name, text in SETTINGS.items():
        path = STATE / name
        if not path.exists() or path.read_text() != text:
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(text)
            part.rename(path)
    # Beside its own files: where a host runs out of memory, conmon leaves a file named oom in the folder it stands in.
    return [
        "env",
        f"--chdir={STATE}",
        *(f"CONTAINERS_{kind}={STATE}/{name}" for kind, name in ENVIRONMENT.items()),
        "podman",
    ]


ENVIRONMENT = {"CONF": "containers.conf", "STORAGE_CONF": "storage.conf"}


def podman(*words: str | Path) -> str:
    return run([*command(), *words])


def run_arguments(host: Host, image_name: str) -> list[str]:
    """The arguments of `podman run` for a host."""
    arguments = [
        "run",
        "--detach",
        "--systemd=false",  # pi-init does it: limits would not count on cgroup v1
        "--cgroupns=private",
        f"--name={host.name}",
        f"--hostname={host.name}",
        "--no-hosts",
        f"--label=release={host.release}",
        f"--label=octet={host.octet}",
        f"--network={NETWORK}",
        f"--ip={host.address}",
        f"--mac-address={mac_of(host.address)}",
        f"--cap-add={CAPABILITIES}",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--restart=on-failure",  # a host that reboots itself ends with an error
        "--tmpfs=/run:mode=755",
        "--tmpfs=/run/lock",
        "--tmpfs=/tmp:mode=1777",
        f"--pids-limit={host.tasks}",
    ]
    if host.memory:
        arguments += [f"--memory={host.memory}", f"--memory-swap={host.memory}"]
    arguments += [f"--volume={disk.mount_point(host.name)}:{disk.directory}" for disk in host.disks]
    return [*arguments, image_name]


def make_network() -> None:
    """The bridge's settings are there, and nothing for it leaves this machine.

    Raises: Refused, when something else has these addresses.
    """
    network = str(subnet())
    keep_in(network)
    with image.locked("network"):
        if NETWORK in podman("network", "ls", "--format={{.Name}}").split():
            return
        try:
            podman("network", "create", "--disable-dns", "--subnet", network, "--gateway", gateway(), NETWORK)
        except Refused as refusal:
            if "already used" not in str(refusal):
                raise
            raise Refused(f"the addresses {network} are in use on this machine; by what, `ip route` shows") from None


def make_disk(host: str, disk: Disk) -> None:
    mount_point = disk.mount_point(host)
    mount_point.mkdir(parents=True)
    file = mount_point.with_suffix(".img")
    with file.open("wb") as blank:
        blank.truncate(disk.size_mib * 1024 * 1024)
    run(["mkfs.ext4", "-q", "-m", "0", file])
    run(["mount", "-o", "loop", file, mount_point])


def remove_disks(host: str) -> None:
    for file in (DISKS / host).glob("*.img"):
        if os.path.ismount(file.with_suffix("")):
            run(["umount", file.with_suffix("")])
    shutil.rmtree(DISKS / host, ignore_errors=True)


def learn_key(address: str) -> None:
    """Take the host's key into known_hosts, in place of what the address had before."""
    require_on_bridge(address)
    keys = run(["ssh-keyscan", "-T", "10", address]).splitlines()
    with image.locked("known_hosts"):
        known = KNOWN_HOSTS.read_text().splitlines() if KNOWN_HOSTS.exists() else []
        kept = [line for line in known if line.split(" ", 1)[0] != address]
        part = KNOWN_HOSTS.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in [*kept, *keys] if not line.startswith("#")))
        part.rename(KNOWN_HOSTS)


def up(host: Host) -> None:
    """A fresh host, in place of one of the same name; returns when SSH answers."""
    address = host.address
    require_free(host, listed())
    make_network()
    image_name = image.build(host.release, command())
    down([host.name])
    for disk in host.disks:
        make_disk(host.name, disk)
    podman(*run_arguments(host, image_name))
    wait_for_ssh(address)
    learn_key(address)
    wait_for_boot(host.name)


def wait_for_boot(name: str) -> None:
    """Return when systemd has started everything.

    Raises: Refused, with the list, when a unit has failed.
    """
    run(ssh_command(name, ["systemctl is-system-running --wait || { systemctl --failed --no-legend >&2; false; }"]))


def require_free(host: Host, there: Sequence[Found]) -> None:
    """Refuse an address that another host has."""
    for other in there:
        if other.address == host.address and other.name != host.name:
            raise Refused(f"{host.address} is the address of {other.name}; take another OCTET, or remove that host")


def down(names: Sequence[str]) -> None:
    """The hosts are gone, with what was on them."""
    for name in names:
        podman("rm", "--force", "--time=0", "--ignore", "--volumes", name)
        remove_disks(name)


def cut(name: str) -> None:
    """Power is cut and comes back; returns when SSH answers again."""
    off(name)
    on(name)


def off(name: str) -> None:
    """Power is cut: everything in the host is killed at once. The disk stays as it is."""
    find(name)
    podman("kill", "--signal=KILL", name)
    podman("wait", name)


def on(name: str) -> None:
    """Power is back; returns when SSH answers."""
    host = find(name)
    for file in (DISKS / name).glob("*.img"):
        if not os.path.ismount(file.with_suffix("")):
            run(["mount", "-o", "loop", file, file.with_suffix("")])
    make_network()
    podman("start", name)
    wait_for_ssh(host.address)


@dataclass(frozen=True)
class Found:
    """A host that is there, running or not."""

    name: str
    release: str
    address: str
    state: str


def listed() -> list[Found]:
    """All hosts of this project."""
    containers = json.loads(podman("ps", "--all", "--format=json") or "[]")
    return [
        Found(
            name=container["Names"][0],
            release=container["Labels"]["release"],
            address=address_of(int(container["Labels"]["octet"])),
            state=container["State"],
        )
        for container in containers
    ]


def find(name: str) -> Found:
    """The host of this name.

    Raises: Refused, when there is none.
    """
    hosts = {host.name: host for host in listed()}
    if name not in hosts:
        raise Refused(f"no test host is named {name}; there are: {', '.join(hosts) or 'none'}")
    return hosts[name]


def ssh_command(name: str, words: Sequence[str]) -> list[str]:
    """ssh to a host as its user pi."""
    address = find(name).address
    require_on_bridge(address)
    return ["ssh", *SSH_OPTIONS, f"pi@{address}", *words]


def clean() -> None:
    """No host is left, no mount, no bridge and no state."""
    if not STATE.exists():
        return
    require_all()
    down([host.name for host in listed()])
    if NETWORK in podman("network", "ls", "--format={{.Name}}").split():
        podman("network", "rm", "--force", NETWORK)
    give_up()
    for tree in STATE.glob("*.tree"):
        image.remove_tree(tree)
    image.remove_tree(STATE)
    shutil.rmtree(RUN, ignore_errors=True)


if __name__ == "__main__":
    sentence(clean)
