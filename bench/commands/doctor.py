"""`bench doctor`: what is wrong with the fleet."""

from __future__ import annotations

import sys

import click
import msgspec

from bench.commands.looking import Seen, look
from bench.commands.nodes import Chosen, allow_many_files, node_options
from bench.doctor import Finding, Patient, Speed, equals, findings
from bench.statistics.outliers import LEAST_NODES

EXIT_FINDINGS = 3


@click.command(
    epilog="Exit status: 0 nothing is wrong; 1 a node does not answer; 2 wrong usage; 3 all answer, and something is "
    "wrong."
)
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(chosen: Chosen, as_json: bool) -> None:
    """Ask each node what it is, and say what differs that should not, what is stale, throttled, or slower than equals.

    Nodes are compared by what GET /node says, and by the decode speed of their newest valid `bench run`.
    """
    allow_many_files()
    seen = look(chosen)
    patients = [_patient(each) for each in seen]
    found, compared = findings(patients, chosen.inventories), sum(map(len, equals(patients)))
    if as_json:
        nodes = [each.name for each in seen]
        click.echo(msgspec.json.encode({"nodes": nodes, "findings": found, "compared_speeds": compared}))
    else:
        for each in found:
            click.echo(
                f"{each.node}: {each.kind}: {each.text.removeprefix(f'{each.node}: ')}\n    remedy: {each.remedy}"
            )
        click.echo(_sum(seen, found, compared))
    if any(each.kind == "unreachable" for each in found):
        sys.exit(1)
    sys.exit(EXIT_FINDINGS if found else 0)


def _patient(seen: Seen) -> Patient:
    speed, run = None, seen.run
    if run and run.single:
        facts = run.fingerprint.get("node") or seen.facts or {}
        speed = Speed(run.single[1].p50.value, (run.load, run.asked), facts)
    return Patient(seen.name, seen.facts, seen.profile, speed, seen.problem, seen.profile_problem)


def _sum(seen: list[Seen], found: list[Finding], compared: int) -> str:
    measured = sum(1 for each in seen if each.run)
    sick = len({each.node for each in found})
    on = f" on {_counted(sick, 'node')}" if sick else ""
    said = f"{_counted(len(seen), 'node')}, {measured} measured: {_counted(len(found), 'finding')}{on}"
    if compared:
        return f"{said}; {compared} speeds were compared with their equals'"
    return f"{said}; no speeds were compared, which takes {LEAST_NODES} equal nodes measured alike"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
