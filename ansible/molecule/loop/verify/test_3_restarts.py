"""What needs a restart is tuned through profile.yml: each of the settings reaches the engine, and its own come back."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import loop
import pytest

from tests.hosts.fleet import Node

OF_NO_RESTART = {"ctx": "N_CTX", "threads": "N_THREADS", "batch": "N_BATCH"}
RACE = ("--restarts", "--slots=2", "--max-tokens=8", "--budget=2m", "--force")
Starts = list[dict[str, str | None]]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The node that was tuned. before: its file. starts: those of its engine meanwhile. run: what the tune wrote."""

    node: Node
    before: bytes
    people_wrote: bytes
    own: dict[str, Any]
    starts: Starts
    run: dict[str, Any]


@pytest.fixture(scope="module")
def tuned(nodes: list[Node]) -> Tuned:
    node, before = nodes[0], loop.engine_starts(nodes[0])
    files, own = [loop.file_of(node, name).read_bytes() for name in ("tuned.yml", "mine.yml")], loop.profile(node)
    same = [f"--{option}={own['env'][name]}" for option, name in OF_NO_RESTART.items()]
    _, told = loop.bench("tune", f"--limit={node.name}", *same, *RACE)
    starts = loop.engine_starts(node)[len(before) :]
    run = json.loads(Path(told["nodes"][0]["file"]).read_text())
    return Tuned(node, *files, own["env"], starts, run)


def test_the_engine_was_started_with_each_of_the_settings_and_then_with_its_own(tuned: Tuned) -> None:
    wanted = [loop.restarting(dict(block["settings"]["items"])) for block in tuned.run["blocks"]]
    own = loop.restarting(tuned.own)
    expected = [which for which, _ in itertools.groupby([own, *wanted, own])]
    assert len(expected) > 2, "the budget ended before the first restart"
    assert tuned.starts == expected[1:]
    assert all(block["status"] != "failed" for block in tuned.run["blocks"])


def test_the_profile_names_them_and_the_one_before_it_is_kept(tuned: Tuned) -> None:
    assert loop.profile(tuned.node)["env"].keys() >= {"MAX_CONCURRENT_REQUESTS", *loop.OF_THE_ENGINE}
    assert loop.file_of(tuned.node, ".tuned.previous.yml").read_bytes() == tuned.before
    assert loop.file_of(tuned.node, "mine.yml").read_bytes() == tuned.people_wrote


def test_deployed_they_are_the_engines_own(tuned: Tuned) -> None:
    loop.deploy(f"--limit={tuned.node.name},localhost")
    loop.require_in_force(tuned.node, loop.profile(tuned.node)["env"])
