"""`python -m bench.fleet_scale`: what a node costs bench, in fleets of 10, 100 and 1,000 of them.

Light fake nodes (bench/fake/fleet.py) answer at a Pi's pace, all at the same time. Measured are, each as a process of
its own: `bench run` over them, writing a profile for each into an inventory, reading all of them again, what Ansible
takes to read that inventory, `bench show` and `bench report`. CPU is the process's and its children's, memory that of
the largest of them, as the kernel counted them at the end. A small process of its own starts each: the kernel takes the
memory of whoever starts a process for the least that this had, which of a meter that has grown would be too much.
Rounds turn through the sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.inventory import tuned_file
from bench.inventory.tuned_profile import Measured, Provenance, TunedProfile
from bench.running import runfile
from bench.running.samples import Run

ROOT = Path(__file__).resolve().parent.parent
ANSIBLE = Path(sys.executable).parent / "ansible-inventory"
STEPS = ("bench run", "write profiles", "read profiles", "ansible-inventory", "bench show", "bench report")
HEAD = (
    "step", "nodes", "wall, s", "CPU, s", "CPU a node, ms", "CPU a further node, ms", "memory, MiB",
    "memory a further node, KiB", "n",
)  # fmt: skip
STARTER = """
import os, sys, time
begun = time.monotonic()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
cpu_s = usage.ru_utime + usage.ru_stime
print([os.waitstatus_to_exitcode(status), time.monotonic() - begun, cpu_s, usage.ru_maxrss])
"""
REQUESTS, TOKENS, TOKENS_PER_S, PREFILL_S = 4, 16, 5.0, 0.5


@dataclass(frozen=True)
class Cost:
    """Of one process. memory_mib: the most that was resident. invalid: runs that bench itself would not believe."""

    step: str
    nodes: int
    wall_s: float
    cpu_s: float
    memory_mib: float
    invalid: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet_scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000], help="sizes of fleets")
    parser.add_argument("--rounds", type=int, default=3, help="how often each size is measured")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write or arguments.read:
        write(arguments.write) if arguments.write else read(arguments.read)
        return
    costs: list[Cost] = []
    for _ in range(arguments.rounds):
        for count in sorted(arguments.nodes):
            with tempfile.TemporaryDirectory(prefix="fleet-scale-") as folder:
                for cost in measured(count, Path(folder)):
                    costs.append(cost)
                    print(told(cost), file=sys.stderr, flush=True)
    print("\n".join(table(costs)))


def measured(count: int, folder: Path) -> Iterator[Cost]:
    """All steps over one fleet, in a folder of their own."""
    bench, this = [sys.executable, "-m", "bench"], [sys.executable, "-m", "bench.fleet_scale"]
    results, inventory = folder / "results", folder / "inventory"
    load = ["--requests", REQUESTS, "--max-tokens", TOKENS, "--prompt-tokens", 64, "--results", results, "--json"]
    with fleet(count) as ports:
        lay_out(inventory, ports)
        nodes = [word for port in ports for word in ("--node", f"{name(port)}=http://127.0.0.1:{port}")]
        ran = cost("bench run", count, [*bench, "run", *nodes, *load], folder)
        runs = [runfile.read(path, Run) for path in results.glob("*/*.json")]
        if sum(run.status == "complete" for run in runs) != count:
            raise SystemExit(f"{count} nodes were to be measured, and only {len(runs)} were")
        yield replace(ran, invalid=sum(not run.is_valid for run in runs))
        yield cost("write profiles", count, [*this, "--write", inventory], folder)
        yield cost("read profiles", count, [*this, "--read", inventory], folder)
        if ANSIBLE.exists():
            yield cost("ansible-inventory", count, [ANSIBLE, "--inventory", inventory, "--list"], folder)
            yield cost("bench show", count, [*bench, "show", "-i", inventory, "--results", results], folder)
    yield cost("bench report", count, [*bench, "report", "-i", inventory, "--results", results], folder)


def name(port: int) -> str:
    return f"node{port}"


@contextmanager
def fleet(count: int) -> Iterator[list[int]]:
    """So many fake nodes; their ports."""
    pace = ["--tokens-per-s", str(TOKENS_PER_S), "--prefill-s", str(PREFILL_S)]
    command = [sys.executable, "-m", "bench.fake.fleet", "--nodes", str(count), *pace]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout
            yield json.loads(process.stdout.readline())["ports"]
        finally:
            process.terminate()


def cost(step: str, nodes: int, command: Sequence[object], folder: Path) -> Cost:
    """Run it to its end. Raises: SystemExit with its words when it fails; a run that calls itself invalid is none."""
    said, environment = folder / "said.txt", {**os.environ, "BENCH_KEY": "fake", "PYTHONPATH": str(ROOT)}
    starter = [sys.executable, "-I", "-S", "-c", STARTER, *(str(word) for word in command)]
    with said.open("wb") as out:
        told = subprocess.run(starter, stdout=subprocess.PIPE, stderr=out, cwd=folder, env=environment, check=True)
    status, wall_s, cpu_s, memory_kib = json.loads(told.stdout)
    if status not in (0, 3 if step == "bench run" else 0):
        raise SystemExit(f"{step} over {nodes} nodes: exit {status}\n{said.read_text()[-3000:]}")
    return Cost(step, nodes, wall_s, cpu_s, memory_kib / 1024)


def lay_out(inventory: Path, ports: Sequence[int]) -> None:
    hosts = {name(port): {"ansible_host": "127.0.0.1", "appliance_port": port} for port in ports}
    inventory.mkdir()
    (inventory / "hosts.json").write_text(json.dumps({"nodes": {"hosts": hosts}}))


def write(inventory: Path) -> None:
    """A profile for each node, as a tune writes it: checked, kept, put in place whole, read again."""
    for each in json.loads((inventory / "hosts.json").read_text())["nodes"]["hosts"]:
        tuned_file.write(inventory, each, PROFILE)


def read(inventory: Path) -> None:
    for each in json.loads((inventory / "hosts.json").read_text())["nodes"]["hosts"]:
        if tuned_file.read(inventory, each) != PROFILE:
            raise SystemExit(f"{each}: the profile is not what was written")


PROFILE = TunedProfile(
    env={"N_CTX": 1024, "N_THREADS": 3, "N_BATCH": 256},
    measured={"decode_tokens_per_s": Measured(median=5.31, ci95=(5.27, 5.36), n=12)},
    provenance=Provenance(run="20260101T000000Z-tune-abcdef", at="2026-01-01T00:00:00Z", ollama="0.33.0"),
)


def told(one: Cost) -> str:
    load = os.getloadavg()[0]
    return (
        f"{one.nodes} nodes, {one.step}: {one.wall_s:.1f} s, CPU {one.cpu_s:.2f} s, {one.memory_mib:.0f} MiB; "
        f"load {load:.1f}" + (f"; {one.invalid} runs are invalid" if one.invalid else "")
    )


def table(costs: Sequence[Cost]) -> list[str]:
    """A row a step and size: medians, in brackets the lowest and the highest round.

    A further node costs what a size costs beyond the next smaller one, by the nodes that it has more: so the process's
    start, which all sizes share, hides no growth.
    """
    rows = [HEAD, tuple("---" for _ in HEAD)]
    for step in STEPS:
        sizes = sorted({one.nodes for one in costs if one.step == step})
        for smaller, size in zip([0, *sizes], sizes, strict=False):
            mine = [one for one in costs if (one.step, one.nodes) == (step, size)]
            less = [one for one in costs if (one.step, one.nodes) == (step, smaller)]
            rows.append(_row(step, size, mine, less))
    invalid, runs = (sum(getattr(one, name) for one in costs if one.step == STEPS[0]) for name in ("invalid", "nodes"))
    last = f"{invalid} of {runs:,} runs were invalid: bench itself was late, or busy."
    return [*(f"| {' | '.join(row)} |" for row in rows), "", last]


def _row(step: str, size: int, mine: Sequence[Cost], less: Sequence[Cost]) -> tuple[str, ...]:
    smaller = less[0].nodes if less else 0
    more_cpu_s = median(one.cpu_s for one in mine) - (median(one.cpu_s for one in less) if less else 0.0)
    more_mib = median(one.memory_mib for one in mine) - (median(one.memory_mib for one in less) if less else 0.0)
    return (
        step,
        f"{size:,}",
        spread([one.wall_s for one in mine]),
        spread([one.cpu_s for one in mine]),
        spread([1000 * one.cpu_s / size for one in mine]),
        f"{1000 * more_cpu_s / (size - smaller):.3g}" if less else "",
        spread([one.memory_mib for one in mine]),
        f"{1024 * more_mib / (size - smaller):.0f}" if less else "",
        str(len(mine)),
    )


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


if __name__ == "__main__":
    main()
