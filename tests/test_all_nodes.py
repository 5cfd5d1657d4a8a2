"""All nodes at the same time: one that fails as nobody expected, and a Ctrl-C while others wait for their turn."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest
from gevent.event import Event
from harness import Node

from bench import all_nodes
from bench.running.client import Target
from bench.running.node_run import Progress
from bench.running.samples import ClosedLoop, Settings
from bench.running.session import Session

TARGETS = [Target(name, "http://127.0.0.1:1", "a key") for name in ("pi1", "pi2", "pi3")]


def upper(target: Target) -> str:
    if target.name == "pi2":
        raise KeyError("what nobody thought of")
    return target.name.upper()


def test_what_nobody_expected_is_one_nodes_problem_and_the_others_have_their_results(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = all_nodes.on_each(TARGETS, upper, Event(), failed=lambda target, problem: problem)
    assert told == ["PI1", "pi2: a fault of bench itself: KeyError: 'what nobody thought of'", "PI3"]
    assert "Traceback" in capsys.readouterr().err


def test_after_an_interruption_no_node_begins_that_waited_for_its_turn() -> None:
    interrupt, begun, release = Event(), list[str](), Event()

    def work(target: Target) -> str:
        begun.append(target.name)
        interrupt.set()
        try:
            release.wait()
        finally:
            gevent.sleep(0)  # as one does that gives its node back what it had
        return target.name

    assert all_nodes.on_each(TARGETS, work, interrupt, at_once=1) == [None, None, None]
    assert begun == ["pi1"]


@pytest.mark.tier2
def test_so_it_is_in_a_run(node: Node, tmp_path: Path) -> None:
    def tell(progress: Progress) -> None:
        if progress.node == "pi2":
            raise KeyError("what nobody thought of")

    targets = [Target(name, f"http://127.0.0.1:{node.port}", node.key) for name in ("pi1", "pi2")]
    settings = Settings(seed=1, prompt_tokens=(48,), max_tokens=2, loads=(ClosedLoop(1),), requests=2)
    told = {each.node: each.problem for each in Session(tmp_path, tell, Event()).measure(targets, settings)}
    assert told == {"pi1": "", "pi2": "pi2: a fault of bench itself: KeyError: 'what nobody thought of'"}
