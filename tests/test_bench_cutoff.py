"""A block that takes too long is ended, and the node that measured it is free again."""

from __future__ import annotations

import pytest
from harness import Node

from bench.fake.handle import FakeHandle
from bench.running.client import Target
from bench.tuning import block
from bench.tuning.block import Question, SettingsRefused

pytestmark = pytest.mark.tier2

QUESTION = Question(words=8, max_tokens=16)


def target(node: Node) -> Target:
    return Target("pi1", f"http://127.0.0.1:{node.port}", node.key)


def test_it_is_ended_and_its_settings_are_refused(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang", faults=1)
    with pytest.raises(SettingsRefused, match="pi1: took much longer than others, and was ended"):
        block.ask(target(node), {"N_THREADS": 2}, QUESTION, most_s=0.2)
    node.wait_until_idle()
    assert block.ask(target(node), {"N_THREADS": 2}, QUESTION).measured
