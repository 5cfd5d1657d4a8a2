"""A node that fails while a fleet is tuned: it is named with what to do, and the others are tuned as if alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from bench_here import Here, once
from fake_pi import running_pi
from harness import Node, post, running_node, wait_until

from bench import wholefile
from bench.fake.handle import FakeHandle, running_fake_engine
from bench.running import runfile
from bench.tuning.tune_file import TuneRun

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 1, "MAX_QUEUE_SIZE": 1, "N_CTX": 512, "N_THREADS": 1, "N_BATCH": 64}
KNOBS = {"parallel": 2}
FAST = "num_thread=2:2.0 num_batch=128:0.5"


@pytest.fixture
def good(node: Node, engine: FakeHandle) -> Node:
    engine.turn(tokens_per_s=100, factors=FAST)
    return node


@pytest.fixture
def other_engine() -> Iterator[FakeHandle]:
    with running_fake_engine(parallel=2, tokens_per_s=100, factors=FAST) as found:
        yield found


@pytest.fixture
def other(other_engine: FakeHandle, tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "other").mkdir()
    with running_node(tmp_path / "other", OLLAMA_PORT=other_engine.port, **SETTINGS) as found:
        yield found


def test_a_node_that_dies_in_the_middle_keeps_its_blocks_and_goes_on_when_it_is_back(
    good: Node, other_engine: FakeHandle, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with running_node(tmp_path / "other", OLLAMA_PORT=other_engine.port, **SETTINGS) as mortal:
        here = Here(tmp_path / "results", pi1=good, pi2=mortal)
        here.on_stage["pi2"] = once("round 2", mortal.stop)
        told = here.tune()
    lost = told["pi2"].run
    assert told["pi1"].problem == ""
    assert lost is not None
    assert (lost.status, lost.outcome, len(lost.blocks) > 2) == ("failed", None, True)
    assert f"pi2: nothing answers on http://127.0.0.1:{mortal.port}" in told["pi2"].problem
    assert "systemctl status pi-llm" in told["pi2"].problem
    assert told["pi2"].problem.endswith("What was measured is kept; --resume goes on with it.")
    with running_node(tmp_path / "other", OLLAMA_PORT=other_engine.port, **{**SETTINGS, "PORT": mortal.port}):
        back = here.tune(is_resumed=True)["pi2"].run
    assert back is not None
    assert (back.id, back.status, back.blocks[: len(lost.blocks)]) == (lost.id, "complete", lost.blocks)


def test_a_node_that_boots_in_the_middle_is_waited_for(good: Node, other_engine: FakeHandle, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    settings = {**SETTINGS, "OLLAMA_PORT": other_engine.port}
    nodes = [Node(tmp_path / "other", settings)]
    nodes[0].wait_until_ready()

    def boot() -> None:
        if len(nodes) == 1:
            nodes.append(Node(tmp_path / "other", {**settings, "PORT": nodes[0].port}))
            nodes[1].wait_until_live()

    here = Here(tmp_path / "results", pi1=good, pi2=nodes[0])
    here.on_stage["pi2"] = once("round 2", nodes[0].stop)
    here.on_pause = boot
    told = here.tune()
    assert len(nodes) == 2
    nodes[1].stop()
    assert {name: each.problem for name, each in told.items()} == {"pi1": "", "pi2": ""}


def test_a_node_that_somebody_else_measures_is_named_with_the_remedy(
    good: Node, other: Node, other_engine: FakeHandle, tmp_path: Path
) -> None:
    here = Here(tmp_path / "results", pi1=good, pi2=other)

    def occupy() -> None:
        other_engine.turn(tokens_per_s=1)
        body = json.dumps({"prompt": "Why do apples fall?", "max_tokens": 500}).encode()
        headers = {"X-API-Key": other.key, "Content-Type": "application/json", "Accept": "text/event-stream"}
        assert other.open(post("/benchmark", headers, body)).status == 200

    here.on_stage["pi2"] = once("round 1", occupy)
    told = here.tune()
    assert told["pi1"].problem == ""
    assert "pi2: not ready: benchmarking. Measure again when" in told["pi2"].problem
    assert "--resume goes on" in told["pi2"].problem


def test_a_node_that_answers_429_is_named_with_the_remedy(good: Node, tmp_path: Path) -> None:
    with running_pi(refuses=429) as pi:
        here = Here(tmp_path / "results", pi1=good)
        here.targets.append(pi.target)
        told = here.tune()
    assert told["pi1"].problem == ""
    assert told["pi2"].problem.startswith("pi2: Full. Measure when nobody else uses it.")


def test_blocks_in_which_the_clock_fell_are_measured_again_and_used_for_nothing(tmp_path: Path) -> None:
    with running_pi(clocks_mhz=(*[2400] * 5, 1500, 2400)) as pi:
        here = Here(tmp_path / "results")
        here.targets.append(pi.target)
        run = here.tune()["pi2"].run
    assert run is not None
    (invalid,) = [block for block in run.blocks if block.status == "invalid"]
    assert invalid.reason.startswith("the processor's clock fell from 2400 to 1500 MHz (cool the board")
    assert [look.moment for look in invalid.during] == ["during"]
    assert invalid.figures is None
    assert run.outcome is not None
    assert sum(fate.blocks for fate in run.outcome.fates) == len(run.blocks) - 1


@pytest.mark.parametrize(("failures", "statuses"), [(1, ["invalid", "measured"]), (2, ["invalid", "failed"])])
def test_an_engine_that_fails_rules_settings_out_when_the_next_attempt_says_the_same(
    tmp_path: Path, failures: int, statuses: list[str]
) -> None:
    with running_pi(engine_fails=failures) as pi:
        here = Here(tmp_path / "results")
        here.targets.append(pi.target)
        run = here.tune()["pi2"].run
    assert run is not None
    assert run.outcome is not None
    default = run.outcome.default
    assert [block.status for block in run.blocks if block.settings == default.settings][:2] == statuses
    assert (default.name == "ruled out") == (failures == 2)
    assert (default.reason == "pi2: The engine ended its stream.") == (failures == 2)


def test_a_slow_node_ends_with_its_own_budget(
    good: Node, other: Node, other_engine: FakeHandle, tmp_path: Path
) -> None:
    other_engine.turn(tokens_per_s=8, factors="")
    told = Here(tmp_path / "results", pi1=good, pi2=other).tune(budget_s=3.0)
    outcomes = {name: each.run.outcome for name, each in told.items() if each.run}
    assert {name: each.problem for name, each in told.items()} == {"pi1": "", "pi2": ""}
    assert outcomes["pi2"] is not None
    assert outcomes["pi2"].stopped == "budget"
    assert outcomes["pi1"] is not None
    assert outcomes["pi1"].blocks > outcomes["pi2"].blocks


def test_a_key_that_is_revoked_in_the_middle_is_told_with_the_remedy(good: Node, other: Node, tmp_path: Path) -> None:
    here = Here(tmp_path / "results", pi1=good, pi2=other)

    def revoke() -> None:
        other.command("keys", "revoke", other.key[3:15])
        wait_until(lambda: other.get("/node", **{"X-API-Key": other.key}).status == 401, "the node knows of it")

    here.on_stage["pi2"] = once("round 2", revoke)
    told = here.tune()
    assert told["pi1"].problem == ""
    assert "pi2: the node does not take this key (401)" in told["pi2"].problem
    assert "pi-llm keys create" in told["pi2"].problem


def test_a_tune_that_another_version_of_bench_began_is_begun_anew(good: Node, tmp_path: Path) -> None:
    here = Here(tmp_path / "results", pi1=good)
    here.on_stage["pi1"] = once("round 2", here.interrupt.set)
    path = here.tune()["pi1"].path
    assert path is not None
    document = json.loads(path.read_bytes())
    document["blocks"] += [document["blocks"][0]] * 9
    path.write_text(json.dumps(document))
    here.interrupt.clear()
    told = here.tune(is_resumed=True)["pi1"]
    assert told.problem.startswith("pi1: its tune was begun by another version of bench (")
    assert told.problem.endswith("was not wanted); begin anew.")


@pytest.mark.parametrize(
    ("part", "name", "was", "said"),
    [
        ("model", "digest", "0000", "the model's digest was 0000 when it was measured, and is 357c53fb"),
        ("settings", "N_BATCH", 32, "N_BATCH was 32 when it was measured, and is 64 now"),
    ],
)
def test_a_tune_does_not_go_on_with_another_model_or_other_settings(
    good: Node, tmp_path: Path, part: str, name: str, was: str | int, said: str
) -> None:
    here = Here(tmp_path / "results", pi1=good)
    here.on_stage["pi1"] = once("round 2", here.interrupt.set)
    path = here.tune()["pi1"].path
    assert path is not None
    kept = runfile.read(path, TuneRun)
    assert kept.status == "interrupted"
    document = json.loads(path.read_bytes())
    document["before"]["node"][part][name] = was
    path.write_text(json.dumps(document))
    here.interrupt.clear()
    told = here.tune(is_resumed=True)["pi1"]
    assert f"pi1: {said}" in told.problem
    assert told.problem.endswith("Begin anew.")
    assert runfile.read(path, TuneRun).blocks == kept.blocks


class Deployments:
    """Deploys nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def deploy(self, node: str, env: Mapping[str, Any] | None) -> None:
        self.asked.append(env)

    def command(self, *nodes: str) -> list[str]:
        return ["deploy", *nodes]


def test_nothing_is_deployed_for_measuring_that_no_file_tells_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For where bench is killed then, the next one puts the node's own settings back by that file."""
    put = wholefile.put

    def full_for_once(data: bytes, path: Path) -> None:
        if b'"temporary_env":{' in data:
            monkeypatch.setattr(wholefile, "put", put)
            raise OSError(28, "No space left on device")
        put(data, path)

    monkeypatch.setattr(wholefile, "put", full_for_once)
    with running_pi() as pi:
        here = Here(tmp_path / "results")
        here.targets.append(pi.target)
        here.deployment = deployments = Deployments()
        told = here.tune(with_restarts=True, slots=(2,))["pi2"]
    assert "No space left on device; make room" in told.problem
    assert told.run is not None
    assert (told.run.status, told.run.temporary_env, deployments.asked) == ("failed", None, [None])


class Broken(Deployments):
    def deploy(self, node: str, env: Mapping[str, Any] | None) -> None:
        super().deploy(node, env)
        if env is not None:
            raise KeyError("what nobody thought of")


def test_whatever_goes_wrong_the_node_gets_its_own_settings_back(tmp_path: Path) -> None:
    with running_pi() as pi:
        here = Here(tmp_path / "results")
        here.targets.append(pi.target)
        here.deployment = broken = Broken()
        told = here.tune(with_restarts=True, slots=(2,))["pi2"]
    path = runfile.newest(tmp_path / "results", "pi2", "tune")
    assert path is not None
    run = runfile.read(path, TuneRun)
    assert told.problem == "pi2: a fault of bench itself: KeyError: 'what nobody thought of'"
    assert (run.status, run.temporary_env, broken.asked[-1]) == ("failed", None, None)
