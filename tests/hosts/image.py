"""What a test host boots from: a minimal Debian by debootstrap, made to look like a fresh Raspberry Pi OS Lite.

Two layers, each kept under the name of what it is made from, so that a change makes a new one and an interrupted build
leaves nothing that looks finished: `base-*.tar` as debootstrap left it (a minute), and podman's image (seconds).
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.hosts.machine import STATE, Mirror, Refused, apt_settings, mirror, run

RELEASES = ("trixie", "bookworm")
# What Raspberry Pi OS Lite has and the roles may count on. It has neither zstd nor python3-venv.
PACKAGES = (
    "ca-certificates,curl,dbus,iproute2,kmod,less,libpam-systemd,openssh-server,procps,python3,sudo,"
    "systemd,systemd-sysv,systemd-timesyncd"
)
ROOTFS = Path(__file__).parent / "rootfs"
CERTIFICATES = Path("/usr/local/share/ca-certificates")
KEY = STATE / "key"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Alone with what `name` stands for, on this machine."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    with (STATE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(*parts: str | bytes) -> str:
    """A short name for exactly these parts."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:12]


def public_key() -> str:
    """The key that hosts let in; made when there is none."""
    with locked("key"):
        if not KEY.with_suffix(".pub").exists():
            KEY.unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test-hosts", "-f", KEY])
    return KEY.with_suffix(".pub").read_text()


def sources_list(release: str, where: Mirror) -> str:
    """apt's sources inside a host: this machine's mirror."""
    signed = "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"
    text = f"Types: deb\nURIs: {where.debian}\nSuites: {release} {release}-updates\nComponents: main\n{signed}\n"
    if where.security:
        text += f"\nTypes: deb\nURIs: {where.security}\nSuites: {release}-security\nComponents: main\n{signed}\n"
    return text


def base(release: str, where: Mirror) -> Path:
    """The tree that debootstrap makes, as a tar file."""
    tar = STATE / f"base-{release}-{digest(release, PACKAGES, where.debian)}.tar"
    if tar.exists():
        return tar
    tree, part = STATE / f"base-{release}.tree", tar.with_suffix(".part")
    remove_tree(tree)
    run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, tree, where.debian])
    run(["chroot", tree, "apt-get", "clean"])
    run(["tar", "-C", tree, "--numeric-owner", "--exclude=./var/lib/apt/lists/*", "-cf", part, "."])
    part.rename(tar)
    remove_tree(tree)
    for older in STATE.glob(f"base-{release}-*.tar"):
        if older != tar:
            older.unlink()
    return tar


def remove_tree(tree: Path) -> None:
    """Remove a system's tree; what an interrupted debootstrap had mounted in it is taken off first, never entered."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{tree}/")), reverse=True):
        run(["umount", "--lazy", mount])
    if tree.exists():
        shutil.rmtree(tree)


def certificates() -> list[Path]:
    """The certificates that this machine trusts beyond Debian's own, for an inspecting proxy on the way out."""
    return sorted(CERTIFICATES.glob("**/*.crt"))


def settle(tree: Path, release: str, where: Mirror, key: str, apt: str) -> None:
    """Make Debian's bare tree a Pi's: its user, its key, its journal, and this machine's way to the mirror."""
    shutil.copytree(ROOTFS, tree, dirs_exist_ok=True, symlinks=True)
    run(["chroot", tree, "chown", "-R", "root:root", "/etc/sudoers.d", "/etc/systemd/system", "/usr/sbin/pi-init"])
    (tree / "etc/sudoers.d/010_pi-nopasswd").chmod(0o440)
    (tree / "etc/apt/sources.list").unlink(missing_ok=True)
    (tree / "etc/apt/sources.list.d/debian.sources").write_text(sources_list(release, where))
    (tree / "etc/apt/apt.conf.d/90machine").write_text(apt)
    run(["chroot", tree, "useradd", "--create-home", "--shell", "/bin/bash", "--groups", "adm,sudo", "pi"])
    ssh = tree / "home/pi/.ssh"
    ssh.mkdir(mode=0o700)
    (ssh / "authorized_keys").write_text(key)
    run(["chroot", tree, "chown", "-R", "pi:pi", "/home/pi/.ssh"])
    for host_key in (tree / "etc/ssh").glob("ssh_host_*"):
        host_key.unlink()
    (tree / "etc/machine-id").write_text("")
    (tree / "var/log/journal").mkdir(exist_ok=True)
    for certificate in certificates():
        shutil.copy(certificate, tree / f"usr/local/share/ca-certificates/{certificate.name}")
    run(["chroot", tree, "update-ca-certificates"])


def build(release: str, podman: list[str]) -> str:
    """The image of a release, made when what it is made from has changed; returns its name."""
    key, where, apt = public_key(), mirror(), apt_settings()
    recipe = [*ROOTFS.rglob("*"), Path(__file__), *certificates()]
    made_from = digest(
        PACKAGES, sources_list(release, where), apt, key, *(p.read_bytes() for p in recipe if p.is_file())
    )
    name = f"localhost/pi-{release}:{made_from}"
    with locked(f"image-{release}"):
        if run([*podman, "images", "--quiet", name]).strip():
            return name
        tar, tree = base(release, where), STATE / f"image-{release}.tree"
        remove_tree(tree)
        tree.mkdir()
        run(["tar", "-C", tree, "--numeric-owner", "-xpf", tar])
        settle(tree, release, where, key, apt)
        part = STATE / f"image-{release}.part"
        run(["tar", "-C", tree, "--numeric-owner", "-cf", part, "."])
        changes = ['CMD ["/usr/sbin/pi-init"]', "STOPSIGNAL SIGRTMIN+3", "ENV container=podman"]
        run([*podman, "import", "--quiet", *(f"--change={change}" for change in changes), part, name])
        part.unlink()
        remove_tree(tree)
        remove_older(name, podman)
    return name


def remove_older(name: str, podman: list[str]) -> None:
    """Remove the images that this one takes the place of, but those that a host still runs from."""
    repository, _, _ = name.partition(":")
    for other in run([*podman, "images", "--format={{.Repository}}:{{.Tag}}", repository]).split():
        if other != name:
            with suppress(Refused):
                run([*podman, "rmi", other])
