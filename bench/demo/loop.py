"""The loop over the demo's nodes, with the commands that people type: tune, deploy, verify, report.

Owns the steps and the options that make them short. Must not know: how nodes are run.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bench.demo.child import run
from bench.demo.effort import Effort
from bench.demo.failed import DemoFailed
from bench.demo.nodes import NAMES, Nodes, Where
from bench.running import runfile
from bench.tuning.tune_file import TuneRun

PLAYBOOK = Path(__file__).parent / "profile.yml"
UNSURE, SLOWER = 3, 3  # exit statuses of bench tune and bench verify that are answers, too


class Loop:
    """Runs one step after the other; meanwhile the nodes are tended."""

    def __init__(self, nodes: Nodes, where: Where, effort: Effort) -> None:
        self._nodes, self._where, self._effort = nodes, where, effort

    def carry_out(self) -> list[str]:
        """The names of the nodes that have a new profile at the end. Raises: DemoFailed."""
        self._tune()
        if unsure := self._unsure:
            self._write_all_the_same(unsure)
        changed = self._profiled
        if not changed:
            click.echo(
                "The nodes' own settings are the best that were found, so no profile was written; nothing to deploy."
            )
        else:
            self._deploy()
            self._verify(changed)
        self._report()
        return self._profiled

    @property
    def _profiled(self) -> list[str]:
        return [name for name, path in self._where.profiles.items() if path.exists()]

    def _tune(self) -> None:
        self._step(
            f"Tune: which settings suit each node? Both are measured at once, at most {self._effort.budget} each.",
            "A node without a profile has 4 threads, for a Pi's 4 cores. These have one core each.",
        )
        search = ["--threads", "1,2,4", "--ctx", "512,1024", "--batch", "128", "--budget", self._effort.budget]
        self._bench("tune", [*search, *self._length], (0, UNSURE))

    @property
    def _unsure(self) -> list[str]:
        """Nodes without a profile whose search has a winner, yet not a sure one."""
        found = []
        for name in set(NAMES) - set(self._profiled):
            path = runfile.newest(self._where.results, name, "tune")
            outcome = runfile.read(path, TuneRun).outcome if path else None
            if outcome and outcome.winner and outcome.winner.settings != outcome.default.settings:
                found.append(name)
        return sorted(found)

    def _write_all_the_same(self, names: Sequence[str]) -> None:
        self._step(
            f"Not sure: {' and '.join(names)}, so no profile was written. That is as it should be, on a busy machine.",
            "The demo has the best so far written all the same (--force), since the next steps prove whether it helps.",
        )
        self._bench("tune", ["--resume", "--force", "--limit", ",".join(names)], (0, UNSURE))

    def _deploy(self) -> None:
        self._step(
            "Deploy: the inventory's profiles, onto the nodes that have one.",
            "For machines this is ansible/profile.yml; for the demo's processes the same variables go into a file.",
        )
        self._run(["ansible-playbook", "-i", str(self._where.inventory), str(_near(PLAYBOOK))])

    def _verify(self, names: Sequence[str]) -> None:
        self._step(
            "Verify: did it help? The profile of before and the new one, in turn.",
            f"{self._effort.rounds} rounds at most. What a search finds is partly luck; this tells.",
        )
        limit = ["--limit", ",".join(names)] if len(names) < len(self._where.profiles) else []
        status = self._bench("verify", [*limit, "--rounds", str(self._effort.rounds), *self._length], (0, SLOWER))
        if status == SLOWER:
            click.echo("A profile made its node slower, so the one before it is deployed again.")
            self._deploy()

    def _report(self) -> None:
        self._step("Report: all that was measured, in one file for a browser.")
        self._bench("report", [], (0,))

    @property
    def _length(self) -> list[str]:
        return ["--max-tokens", str(self._effort.max_tokens)]

    def _step(self, *lines: str) -> None:
        click.echo()
        click.secho(lines[0], bold=True)
        for line in lines[1:]:
            click.echo(line)

    def _bench(self, command: str, options: Sequence[str], allowed: Sequence[int]) -> int:
        common = ["-i", str(self._where.inventory), "--results", str(self._where.results)]
        return self._run(["bench", command, *common, *options], allowed)

    def _run(self, command: Sequence[str], allowed: Sequence[int] = (0,)) -> int:
        """Its exit status. Raises: DemoFailed for one that is not allowed."""
        click.echo(f"$ {shlex.join(command)}\n")
        status = run(_program(command), self._nodes)
        if status not in allowed:
            raise DemoFailed(f"{command[0]} {command[1]} ended with status {status}.")
        return status


def _program(command: Sequence[str]) -> list[str]:
    """What is printed as people type it, run by this Python."""
    if command[0] == "bench":
        return [sys.executable, "-m", *command]
    beside = Path(sys.executable).with_name(command[0])
    return [str(beside) if beside.exists() else command[0], *command[1:]]


def _near(path: Path) -> Path:
    """As seen from here, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
