"""Tunes nodes in this process, where a pause takes no time and a test sees every stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from harness import Node

from bench.running.client import Target
from bench.running.node_run import Progress
from bench.tuning.block import Question
from bench.tuning.meter import Deployment, NoDeployment, Surroundings
from bench.tuning.tune import Tuned, Tuning
from bench.tuning.tuned import Wanted

AXES: dict[str, Any] = {"n_ctx": (512,), "n_threads": (1, 2), "n_batch": (64, 128)}


class Here:
    """on_stage: what happens when a node tells where it is, by the node's name; on_pause: when one is waited for."""

    def __init__(self, results: Path, **nodes: Node) -> None:
        self.results = results
        self.targets = [Target(name, f"http://127.0.0.1:{node.port}", node.key) for name, node in nodes.items()]
        self.interrupt = Event()
        self.on_stage: dict[str, Callable[[Progress], None]] = {}
        self.deployment: Deployment = NoDeployment()
        self.on_pause: Callable[[], object] = lambda: None

    def tune(self, is_resumed: bool = False, budget_s: float = 30.0, **more: Any) -> dict[str, Tuned]:
        around = Surroundings(self.results, self._tell, self.deployment, sleep=self._pause)
        wanted = Wanted(budget_s=budget_s, seed=1, **AXES, **more)
        found = Tuning(wanted, Question(max_tokens=8), around, self.interrupt).tune(self.targets, is_resumed)
        return {each.node: each for each in found}

    def _pause(self, pause_s: float) -> None:
        self.on_pause()
        gevent.sleep(0.01)

    def _tell(self, progress: Progress) -> None:
        if progress.node in self.on_stage:
            self.on_stage[progress.node](progress)


def once(stage: str, do: Callable[[], object]) -> Callable[[Progress], None]:
    """Do it when this stage is reached, and never again."""
    left = [do]

    def on_stage(progress: Progress) -> None:
        if progress.stage == stage and left:
            left.pop()()

    return on_stage
