"""`python -m bench.provision`: what a run of site.yml takes, cold and warm, on 1, 2 and 4 test hosts. Needs root.

Cold is a fresh Debian with the controller's cache filled; warm is a run that finds nothing to change. The reference is
a playbook of pings on the same hosts right after it, as many as the warm run had tasks: what Ansible and ssh take here
and now for that many tasks that do nothing. Rounds turn through the numbers of hosts; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
SCENARIO, FIRST_OCTET = "bench", 91
INVENTORY = ROOT / ".test-hosts/molecule" / SCENARIO / "inventory"
SITE = ROOT / "ansible/site.yml"
RECAP = re.compile(r"^\S+ +: (ok=.*)$", re.MULTILINE)
ATTEMPTS = 3  # where this checkout is edited meanwhile, the next run lays it out anew and is not warm
HEAD = ("hosts", "cold, s", "cold, s a node", "warm, s", "warm, s a node", "cold / pings", "warm / pings", "n")


@dataclass(frozen=True)
class Run:
    """One run of a playbook. The tasks are those of the node that had the most of them."""

    seconds: float
    ran: int
    skipped: int
    changed: int


@dataclass(frozen=True)
class Measured:
    """One round on so many hosts."""

    hosts: int
    cold: Run
    warm: Run
    pings: Run


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.provision")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4], help="numbers of hosts")
    parser.add_argument("--rounds", type=int, default=3, help="how often each number is measured")
    arguments = parser.parse_args()
    with fresh_hosts(1):  # fills the controller's cache, and counts for nothing
        play(SITE)
    rounds: list[Measured] = []
    for _ in range(arguments.rounds):
        for hosts in arguments.hosts:
            rounds.append(measured(hosts))
            print(told(rounds[-1]), file=sys.stderr, flush=True)
    print("\n".join(table(rounds)))


@contextmanager
def fresh_hosts(count: int) -> Iterator[None]:
    """Hosts that were never provisioned, with an inventory; they are gone afterwards."""
    platforms = [{"name": f"{SCENARIO}{n}", "release": "trixie", "octet": FIRST_OCTET + n} for n in range(count)]
    test_hosts = [sys.executable, "-m", "tests.hosts"]
    run([*test_hosts, "create", SCENARIO, "-"], json.dumps(platforms))
    try:
        yield
    finally:
        run([*test_hosts, "destroy", SCENARIO, "-"], json.dumps(platforms))


def measured(hosts: int) -> Measured:
    """Provision fresh hosts, then again until nothing changes, then ping them as often.

    Raises: SystemExit after ATTEMPTS runs that changed something.
    """
    with fresh_hosts(hosts):
        cold = play(SITE)
        for _ in range(ATTEMPTS):
            warm = play(SITE)
            if not warm.changed:
                return Measured(hosts, cold, warm, play_pings(warm.ran))
    raise SystemExit(f"site.yml changed something {ATTEMPTS} times in a row; is this checkout being edited?")


def play(playbook: Path) -> Run:
    """Run a playbook on all hosts; what it takes is what somebody waits for, Ansible's own start included."""
    command = [f"{Path(sys.executable).parent}/ansible-playbook", f"--inventory={INVENTORY}", str(playbook)]
    begun = time.monotonic()
    said = run(command)
    seconds = time.monotonic() - begun
    ran, skipped, changed = most(said)
    return Run(seconds, ran, skipped, changed)


def play_pings(count: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        playbook = Path(folder) / "pings.yml"
        tasks = [{"name": "Ping", "ansible.builtin.ping": {}}] * count
        playbook.write_text(json.dumps([{"hosts": "nodes", "gather_facts": False, "become": True, "tasks": tasks}]))
        return play(playbook)


def run(command: Sequence[str], given: str = "") -> str:
    """What a command prints, started in the project's root. Raises: SystemExit with its words when it fails."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done.stdout


def most(said: str) -> tuple[int, int, int]:
    """Tasks that ran, were skipped and changed something, of the node with the most: ansible's recap, read."""
    counts = [dict(pair.split("=") for pair in line.split()) for line in RECAP.findall(said)]
    return max((int(count["ok"]), int(count["skipped"]), int(count["changed"])) for count in counts)


def told(one: Measured) -> str:
    load = os.getloadavg()[0]
    return (
        f"{one.hosts} hosts: cold {one.cold.seconds:.1f} s, warm {one.warm.seconds:.1f} s, "
        f"{one.pings.ran} pings {one.pings.seconds:.1f} s; load {load:.1f}"
    )


def table(rounds: Sequence[Measured]) -> list[str]:
    """A row for each number of hosts: medians, in brackets the lowest and the highest round; below, tasks a node."""
    rows = [HEAD, tuple("---" for _ in HEAD)]
    for hosts in sorted({one.hosts for one in rounds}):
        mine = [one for one in rounds if one.hosts == hosts]
        rows.append((str(hosts), *(spread([figure(one) for one in mine]) for figure in FIGURES), str(len(mine))))
    last = rounds[-1]
    tasks = (
        f"Tasks a node: cold {last.cold.ran} and {last.cold.skipped} skipped, "
        f"warm {last.warm.ran} and {last.warm.skipped} skipped."
    )
    return [*(f"| {' | '.join(row)} |" for row in rows), "", tasks]


FIGURES: tuple[Callable[[Measured], float], ...] = (
    lambda one: one.cold.seconds,
    lambda one: one.cold.seconds / one.hosts,
    lambda one: one.warm.seconds,
    lambda one: one.warm.seconds / one.hosts,
    lambda one: one.cold.seconds / one.pings.seconds,
    lambda one: one.warm.seconds / one.pings.seconds,
)


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


if __name__ == "__main__":
    main()
