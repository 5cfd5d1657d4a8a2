"""`python -m bench.demo`: what `make demo`, `make demo-up` and `make demo-down` run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from bench.demo import answer
from bench.demo import nodes as fleet
from bench.demo.child import run
from bench.demo.effort import Effort
from bench.demo.failed import DemoFailed
from bench.demo.node import HOST, MODEL
from bench.demo.nodes import NAMES, Nodes, Where, fetch_model, owned

PORT = click.IntRange(1, 65535)
ROUNDS = click.IntRange(6, 21)  # LEAST_ROUNDS and LOOKS of a verification: importing those needs the tools of the loop
FOLDER = click.Path(file_okay=False, path_type=Path)
UP_PIPE = "DEMO_UP_PIPE"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def place(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where; the command gets them one by one."""
    for option in reversed(
        (
            click.option(
                "--dir", "folder", type=FOLDER, default=".demo", show_default=True, help="Keys, logs, results"
            ),
            click.option("-i", "--inventory", type=FOLDER, default="inventory/demo", show_default=True),
            click.option("--port", default=8000, show_default=True, type=PORT, help="Of demo1; demo2 has the next."),
            click.option("--engine-port", default=11434, show_default=True, type=PORT, help="As --port."),
        )
    ):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """The whole loop on this machine: two nodes, an answer, tuned, deployed, verified."""


@main.command("run")
@place
@click.option("--once", is_flag=True, help="End after the answer.")
@click.option("--budget", default=Effort.budget, show_default=True, help="Of bench tune, for each node.")
@click.option("--rounds", default=Effort.rounds, show_default=True, type=ROUNDS, help="Of bench verify, at most.")
@click.option("--max-tokens", default=Effort.max_tokens, show_default=True, type=click.IntRange(2, 512))
@click.option("--install", default="", help="Command that installs what the loop needs, where it is missing.")
def run_(
    folder: Path, inventory: Path, port: int, engine_port: int, once: bool, budget: str, rounds: int, max_tokens: int,
    install: str,
) -> None:  # fmt: skip
    """Start both nodes, stream an answer, tune, deploy, verify, report; then end them."""
    where = Where(folder, inventory, port, engine_port)
    began_at = time.monotonic()
    with ended_in_order(), owned(where) as nodes:
        start(nodes, where)
        if once:
            return
        require_tools(install, nodes)
        from bench.demo.loop import Loop  # only now: what it imports may have been installed a moment ago

        profiled = Loop(nodes, where, Effort(budget, rounds, max_tokens)).carry_out()
        if profiled:
            ask(where, NAMES.index(profiled[0]), "The same question, with the profile:")
        click.echo(
            f"\nThat took {time.monotonic() - began_at:.0f} s. The nodes end now; `make demo-up` starts them to stay.\n"
            f"Report: {where.results / 'report.html'}   profiles: {inventory / 'host_vars'}   logs: {folder}"
        )


@main.command()
@place
def up(folder: Path, inventory: Path, port: int, engine_port: int) -> None:
    """Start both nodes, and leave them running."""
    where = Where(folder, inventory, port, engine_port)
    with ended_in_order():
        _hold_in_background(where)
        try:
            ask(where, 0)
        except BaseException:
            fleet.down(folder)
            raise
    click.echo(HOW_TO.format(host=HOST, port=port, next=port + 1, key=where.key_file, inventory=inventory,
                             results=where.results))  # fmt: skip


HOW_TO = """
Both nodes run until `make demo-down`: http://{host}:{port} and http://{host}:{next}, with the key in {key}.

  curl -N http://localhost:{port}/generate -H "X-API-Key: $(cat {key})" \\
    -H "Content-Type: application/json" -d '{{"prompt": "Write a haiku about the sea."}}'

The loop by hand, after `make fleet && . .venv/bin/activate`:

  bench tune -i {inventory} --results {results} --threads 1,2,4 --ctx 512,1024 --batch 128 --budget 90s --max-tokens 64
  ansible-playbook -i {inventory} bench/demo/profile.yml
  bench verify -i {inventory} --results {results} --rounds 8 --max-tokens 64
  bench report -i {inventory} --results {results}
"""


@main.command(hidden=True)
@place
def hold(folder: Path, inventory: Path, port: int, engine_port: int) -> None:
    """Run both nodes until SIGTERM: what `up` leaves behind."""
    where = Where(folder, inventory, port, engine_port)
    told = int(os.environ.pop(UP_PIPE))
    with ended_in_order(), owned(where) as nodes:
        introduce()
        nodes.start()
        with (folder / "demo.log").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.write(told, b"up")
        os.close(told)
        nodes.tend_until(lambda: False)


@main.command()
@click.option("--dir", "folder", type=FOLDER, default=".demo", show_default=True)
def down(folder: Path) -> None:
    """End the demo that runs."""
    click.echo("ended" if fleet.down(folder) else "no demo runs")


@main.command()
@click.argument("node", type=click.Choice(NAMES))
@click.option("--dir", "folder", type=FOLDER, default=".demo", show_default=True)
def restart(node: str, folder: Path) -> None:
    """Have a node take the settings in its file: what profile.yml runs."""
    click.echo(f"{node}: restarted" if fleet.restart(folder, node) else f"{node}: has them already")


def introduce() -> None:
    fetch_model()
    click.echo(f"engine     {MODEL}, a small real model, behind Ollama's API (it is not Ollama)")


def start(nodes: Nodes, where: Where) -> None:
    introduce()
    nodes.start()
    ask(where, 0)


def ask(where: Where, number: int, said: str = "") -> None:
    click.echo(f"\n{said}" if said else f"key        {where.key_file}, for both nodes\n")
    answer.show(where.port + number, where.key_file.read_text().strip())


def require_tools(install: str, nodes: Nodes) -> None:
    """The loop reads inventories with Ansible, which an answer needs not. Raises: DemoFailed."""
    if _has_tools():
        return
    if install:
        click.echo("\nThe loop needs ansible-core and a few more, once:")
        run(shlex.split(install), nodes)
    if not _has_tools():
        raise DemoFailed("the loop needs ansible-core, which is not installed here; `make fleet` installs it.")


def _has_tools() -> bool:
    return Path(sys.executable).with_name("ansible-playbook").exists()


def _hold_in_background(where: Where) -> None:
    """Start `hold`, and wait until its nodes answer. Raises: DemoFailed."""
    reading, writing = os.pipe()
    options = ["--dir", str(where.folder), "-i", str(where.inventory), "--port", str(where.port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.demo", "hold", *options, "--engine-port", str(where.engine_port)],
        env={**os.environ, UP_PIPE: str(writing)},
        pass_fds=[writing],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(writing)
    try:
        is_up = os.read(reading, 2) == b"up"
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        os.close(reading)
    if not is_up:
        sys.exit(process.wait())


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a terminal that closes end what was begun, in order; a second one does not hurry it."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nended; nothing is left running.")
        sys.exit(130)
    except BrokenPipeError:  # the terminal that read us has gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
