"""`python -m tests.hosts COMMAND …`, from the project's root."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import click

from tests.hosts import fleet, image, podman, server
from tests.hosts.machine import Refused, require_all
from tests.hosts.network import gateway, require_on_bridge


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except Refused as refusal:
            raise click.ClickException(str(refusal)) from None


@click.group(cls=Commands)
def main() -> None:
    """Debian hosts with real systemd, on this machine alone. Needs root, podman and debootstrap."""
    require_all()


@main.command()
@click.argument("name")
@click.argument("release", type=click.Choice(image.RELEASES))
@click.argument("octet", type=int)
@click.option("--memory", help="The most RAM the host may use, as in 512m.")
@click.option("--tasks", type=int, default=4096, show_default=True, help="The most processes and threads.")
@click.option("--disk", "disks", multiple=True, metavar="DIR=MIB", help="A file system of its own for DIR, this small.")
def up(name: str, release: str, octet: int, memory: str | None, tasks: int, disks: tuple[str, ...]) -> None:
    """A fresh host NAME at 10.99.x.OCTET, in place of one of that name; user pi, key .test-hosts/key."""
    host = podman.Host(name, release, octet, memory, tasks, tuple(podman.Disk.parse(disk) for disk in disks))
    podman.up(host)
    click.echo(f"{name} {release} {host.address}")


@main.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="All hosts of this project.")
def down(names: tuple[str, ...], everyone: bool) -> None:
    """Remove hosts, with what was on them."""
    podman.down([host.name for host in podman.listed()] if everyone else names)


@main.command()
@click.argument("name")
def cut(name: str) -> None:
    """Cut the power of a host and boot it again."""
    podman.cut(name)


@main.command()
@click.argument("name")
def off(name: str) -> None:
    """Cut the power of a host."""
    podman.off(name)


@main.command()
@click.argument("name")
def on(name: str) -> None:
    """Boot a host that is off."""
    podman.on(name)


@main.command()
@click.argument("name")
def pause(name: str) -> None:
    """Freeze a host: it answers nothing, and goes on where it was."""
    podman.podman("pause", podman.find(name).name)


@main.command()
@click.argument("name")
def unpause(name: str) -> None:
    """Let a frozen host go on."""
    podman.podman("unpause", podman.find(name).name)


@main.command("list")
def list_hosts() -> None:
    """Name, release, address and state of each host."""
    for host in podman.listed():
        click.echo(f"{host.name:16} {host.release:10} {host.address:13} {host.state}")


@main.command("image")
@click.argument("release", type=click.Choice(image.RELEASES))
def build_image(release: str) -> None:
    """Make what hosts boot from, and print its name."""
    click.echo(image.build(release, podman.command()))


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("words", nargs=-1)
def ssh(name: str, words: tuple[str, ...]) -> None:
    """Run a command on a host as its user pi, or log in."""
    sys.exit(subprocess.run(podman.ssh_command(name, words), check=False).returncode)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--port", default=0, help="A free one by itself.")
@click.option("--corrupt", is_flag=True, help="Turn over one bit in the middle of each file.")
@click.option("--stop-after", type=int, metavar="BYTES", help="Close the connection after this much of an answer.")
@click.option("--bytes-per-s", type=int, metavar="N", help="Send no faster.")
@click.option(
    "--detach", type=click.Path(path_type=Path), metavar="FILE", help="Serve on, in the background; FILE: pid."
)
def serve(
    directory: Path, port: int, corrupt: bool, stop_after: int | None, bytes_per_s: int | None, detach: Path | None
) -> None:
    """Serve the files of DIRECTORY on the bridge's own address, and print the URL. Needs a running host."""
    require_on_bridge(gateway())
    with server.listening(directory, server.Faults(corrupt, stop_after, bytes_per_s), gateway(), port) as downloads:
        click.echo(downloads.url)
        if detach is None or in_background(detach):
            downloads.serve_forever()


def in_background(pid_file: Path) -> bool:
    """Split in two, and say to each whether it is the one in the background; that one has left this terminal."""
    sys.stdout.flush()
    if pid := os.fork():
        pid_file.write_text(str(pid))
        return False
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    return True


@main.command()
@click.argument("pid_file", type=click.Path(path_type=Path))
def unserve(pid_file: Path) -> None:
    """End the server that runs in the background, if it does."""
    if pid_file.exists():
        pid = pid_file.read_text()
        with contextlib.suppress(FileNotFoundError):  # after a reboot of this machine the number is another's
            if b"tests.hosts" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGTERM)
        pid_file.unlink()


@main.command()
@click.argument("scenario")
@click.argument("platforms", type=click.File())
def create(scenario: str, platforms: TextIO) -> None:
    """The hosts of a molecule scenario, with releases to download and an inventory. PLATFORMS: a file of JSON, or -."""
    fleet.create(scenario, json.load(platforms))


@main.command()
@click.argument("scenario")
@click.argument("platforms", type=click.File())
def destroy(scenario: str, platforms: TextIO) -> None:
    """Remove what `create` made."""
    fleet.destroy(scenario, json.load(platforms))


@main.command()
def clean() -> None:
    """Remove all hosts, images, mounts and state of this project."""
    podman.clean()


if __name__ == "__main__":
    main(prog_name="python -m tests.hosts")
