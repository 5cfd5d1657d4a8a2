"""Blocks of one node, measured one after the other: what both a tune and a verification are made of.

Owns what lies around a block: the right settings in force, a board that is cool enough, another attempt where the node
is busy, what speaks against it afterwards. Must not know: which block is wanted next, and what for.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import gevent

from bench.knobs import KNOBS
from bench.running import board_validity, node_facts
from bench.running.client import BenchError, Target, Unreachable
from bench.running.cooling import Cooling
from bench.running.node_facts import AnotherNode, NotReady
from bench.running.node_run import Progress
from bench.running.samples import Facts
from bench.tuning import block
from bench.tuning.block import Busy, EngineFailed, Gone, Question, SettingsRefused
from bench.tuning.blocks import BlockRecord
from bench.tuning.objective import Objective
from bench.tuning.space import Settings, Value

PAUSES_S = (5.0, 10.0, 20.0, 40.0)  # before a node that does not answer, or is used by others, is asked again
LOOK_EVERY_S = 5.0


class Deployment(Protocol):
    """How settings that need a restart come onto a node."""

    def deploy(self, node: str, env: Mapping[str, Value] | None) -> None:
        """Have the node run with this profile, or with the inventory's own (None), and wait for it.

        Raises: BenchError.
        """

    def command(self, *nodes: str) -> list[str]:
        """What people type to have the inventory's own profiles in force on these nodes."""


class NoDeployment:
    """Without an inventory: all settings travel in requests."""

    def deploy(self, node: str, env: Mapping[str, Value] | None) -> None:
        raise BenchError(f"{node}: settings that need a restart come onto a node through an inventory; name it.")

    def command(self, *nodes: str) -> list[str]:
        return ["ansible-playbook", "ansible/profile.yml", "--limit", ",".join((*nodes, "localhost"))]


@dataclass(frozen=True)
class Surroundings:
    """What nodes are measured with, common to all: where files go, who is told, how one waits."""

    results: Path
    tell: Callable[[Progress], None]
    deployment: Deployment
    cooling: Cooling = field(default_factory=Cooling)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = gevent.sleep


@dataclass
class InForce:
    """Which settings a node was given for measuring; None: the inventory's own.

    base: the env of its own profile. own: those of its own settings that need a restart. is_known: false where a
    deployment began, and did not come to its end.
    """

    base: Mapping[str, Value]
    own: Mapping[str, Value]
    temporary: dict[str, Any] | None = None
    is_known: bool = True


class Meter:
    """Measures blocks of one node.

    now_s: seconds since the whole began. in_force: is kept true; on_deploy: has it written down.
    """

    def __init__(
        self,
        target: Target,
        around: Surroundings,
        question: Question,
        now_s: Callable[[], float],
        in_force: InForce,
        on_deploy: Callable[[], None] = lambda: None,
    ) -> None:
        self._target, self._around, self._question, self._now_s = target, around, question, now_s
        self._in_force, self._on_deploy = in_force, on_deploy
        self._looked: Facts | None = None
        self._failed_once: set[Settings] = set()
        self._first: Facts | None = None

    def begin(self) -> Facts:
        """Wait for the node, and look at it. Raises: BenchError."""
        node_facts.require_ready(self._target)
        self._looked = self._look("before")
        return self._looked

    def block(self, settings: Settings, streams: int = 1, most_s: float | None = None) -> BlockRecord:
        """Measure these settings once, whatever it takes; see `_measure` for what may come of it.

        A node that is busy or silent is asked again after PAUSES_S, in which it may even boot. Raises: BenchError after
        the last of them.
        """
        began_s = self._now_s()
        for pause_s in (*PAUSES_S, None):
            try:
                if self._looked is None:
                    self.begin()
                return self._measure(settings, streams, began_s, most_s)
            except (Busy, Gone, NotReady, Unreachable):
                self._looked = None
                if pause_s is None:
                    raise
                self._around.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def put_back(self) -> None:
        """Have the inventory's own profile in force again. Raises: BenchError, which says what to do."""
        if self._in_force.temporary is None:
            return
        try:
            self._around.deployment.deploy(self._target.name, None)
        except BenchError as error:
            raise BenchError(
                f"{error} The node still runs with {self._in_force.temporary}; put its own profile back with: "
                + shlex.join(self._around.deployment.command(self._target.name))
            ) from error
        self._in_force.temporary = None

    def _measure(self, settings: Settings, streams: int, began_s: float, most_s: float | None) -> BlockRecord:
        """One block.

        1. The settings that need a restart are deployed, where others are in force.
        2. The board is let cool down.
        3. Settings that are refused, or take longer than `most_s`, are "failed". Where the engine failed, it may have
           been restarted in the middle: that is "invalid", and "failed" when it does so again at the next attempt.
        4. What speaks against the block makes it "invalid".
        Raises: Busy, Gone, Unreachable, WrongKey, AnotherNode, RunFileError.
        """

        def record(**fields: Any) -> BlockRecord:
            cost_s = round(self._now_s() - began_s, 6)
            return BlockRecord(settings=settings, began_s=round(began_s, 6), cost_s=cost_s, streams=streams, **fields)

        if problem := self._deployed(settings):  # 1
            return record(status="failed", reason=problem)
        self._cool_down()  # 2
        before = self._looked.node if self._looked else None
        watch = _Watch(lambda: node_facts.during(self._target, self._now_s()))
        has_clocks = board_validity.clock_mhz(before) is not None
        try:
            on_stage = watch.on_stage if has_clocks else lambda stage: None
            answer = block.ask(self._target, block.live(settings), self._question, streams, on_stage, most_s)
        except EngineFailed as failed:  # 3
            is_again = settings in self._failed_once
            self._failed_once.add(settings)
            return record(status="failed" if is_again else "invalid", reason=str(failed))
        except SettingsRefused as refused:
            return record(status="failed", reason=str(refused))
        finally:
            watch.stop()
        self._failed_once.discard(settings)
        self._looked = after = self._look("after")
        known = {"samples": answer.samples, "facts": after, "during": watch.looks}
        figures = block.figures(answer.measured)
        against = board_validity.marks(before, after.node, [look.node for look in watch.looks if look.node])
        if against or figures is None:  # 4
            reasons = [f"{mark.reason} ({mark.remedy})" for mark in against] or ["the answer ended after one token"]
            return record(status="invalid", reason="; ".join(reasons), **known)
        return record(status="measured", figures=figures, **known)

    def _deployed(self, settings: Settings) -> str:
        """See to it that the settings of a restart are in force; why they cannot be, or nothing.

        Raises: Unreachable, AnotherNode; neither is a fault of the settings. RunFileError.
        """
        wanted = restart_env(settings)
        known = {**self._in_force.own, **(self._in_force.temporary or {})}
        is_in_force = all(known.get(name, KNOBS[name].default) == value for name, value in wanted.items())
        if is_in_force and self._in_force.is_known:
            return ""
        self._in_force.is_known = False
        self._in_force.temporary = wanted  # told before it is done, for whoever finds the file of a killed bench
        self._on_deploy()
        try:
            self._around.deployment.deploy(self._target.name, {**self._in_force.base, **wanted})
            facts = self.begin()
        except (Unreachable, AnotherNode):
            raise
        except BenchError as error:
            node_facts.require_answer(self._target)
            return str(error)
        self._in_force.is_known = True
        return not_in_force(wanted, facts.node)

    def _cool_down(self) -> None:
        def look() -> Facts:
            return self._look("before")

        def tell(stage: str) -> None:
            self._around.tell(Progress(self._target.name, stage, 0, 1, unit="pause"))

        self._looked = self._around.cooling.wait(self._looked, look, tell)

    def _look(self, moment: Literal["before", "after"]) -> Facts:
        """Blocks compare on one model and engine only. Raises: AnotherNode, WrongKey."""
        looked = node_facts.look(self._target, moment, self._now_s())
        if self._first is not None:
            node_facts.require_same(self._target.name, self._first.node, looked.node)
        elif looked.node is not None:
            self._first = looked
        return looked


class _Watch:
    """Looks at a node while it generates: clocks of a moment before or after it say nothing of those in between."""

    def __init__(self, look: Callable[[], Facts]) -> None:
        self.looks: list[Facts] = []
        self._look = look
        self._greenlet: Any = None

    def on_stage(self, stage: str) -> None:
        if stage != "measuring":
            self.stop()
        elif self._greenlet is None:
            self._greenlet = gevent.spawn(self._go_on)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def _go_on(self) -> None:
        while True:
            with suppress(BenchError):
                self.looks.append(self._look())
            gevent.sleep(LOOK_EVERY_S)


def streams_of(settings: Settings, objective: Objective) -> int:
    """How many generations a block has at once: as many as the settings have slots, where these are part of them."""
    slots = settings.env.get("MAX_CONCURRENT_REQUESTS")
    return slots if isinstance(slots, int) and objective != "latency" else 1


def restart_env(settings: Settings) -> dict[str, Value]:
    """Those of the settings that only a restart of the engine changes."""
    return {name: value for name, value in settings.items if KNOBS[name].restart == "ollama"}


def not_in_force(wanted: Mapping[str, Value], node: Mapping[str, Any] | None) -> str:
    """What a node tells that differs from the wanted settings, as a sentence; nothing where all is as it should be."""
    told = (node or {}).get("settings") or {}
    others = {name: told[name] for name, value in wanted.items() if name in told and told[name] != value}
    if not others:
        return ""
    said = ", ".join(f"{name} is {value} on the node and should be {wanted[name]}" for name, value in others.items())
    return f"{said}: is it pinned in another file of the inventory, or not deployed?"
