"""`bench run` against real nodes with a fake engine: what it measures, writes, says, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_clock import FakeClock
from gevent.event import Event
from harness import DEADLINE_S, PROJECT, Node, free_port, running_node, wait_until

from bench.fake.handle import FakeHandle, running_fake_engine
from bench.running import node_facts, runfile
from bench.running.client import Target
from bench.running.cooling import PAUSE_S, Cooling
from bench.running.node_run import Progress
from bench.running.samples import KIND, ClosedLoop, Facts, Run, Settings
from bench.running.session import Session

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "MAX_QUEUE_SIZE": 4, "N_CTX": 512}
KNOBS = {"parallel": 2}
QUICK = ("--requests", "4", "--max-tokens", "4", "--prompt-tokens", "48,96")


@pytest.fixture
def node(running: Node, engine: FakeHandle) -> Node:
    running.wait_until_idle()
    return running


def started(node: Node, folder: Path, *arguments: str, key: str | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "bench", "run", "--results", str(folder),
            "--node", f"pi1=http://127.0.0.1:{node.port}", *arguments,
        ],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "BENCH_KEY": key or node.key},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def bench(node: Node, folder: Path, *arguments: str, **more: Any) -> tuple[int, str, str]:
    process = started(node, folder, *arguments, **more)
    out, err = process.communicate(timeout=DEADLINE_S * 2)
    return process.returncode, out, err


def measured(node: Node, folder: Path, *arguments: str) -> dict[str, Any]:
    """The figures of a run that did not fail; on a busy machine bench may well find itself late."""
    status, out, err = bench(node, folder, "--json", *arguments)
    assert status in (0, 3), (status, out, err)
    figures: dict[str, Any] = json.loads(out)
    return figures


def file_of(folder: Path) -> Path:
    found = runfile.newest(folder, "pi1", KIND)
    assert found is not None
    return found


def test_a_closed_loop_is_measured_and_its_file_holds_every_sample(node: Node, tmp_path: Path) -> None:
    figures = measured(node, tmp_path, *QUICK, "--concurrency", "1,2", "--slo", "ttft=10s")
    one, two = figures["runs"][0]["stages"]
    assert (one["answered"], one["warm_ups"], two["answered"], two["warm_ups"]) == (4, 1, 4, 2)
    assert one["goodput"]["good"] == 4
    assert one["quantities"]["prefill_tokens_per_s"]["n"] == one["quantities"]["decode_tokens_per_s"]["n"] == 4
    run = runfile.read(file_of(tmp_path), Run)
    assert (run.status, [len(stage.samples) for stage in run.stages]) == ("complete", [5, 6])
    assert run.fingerprint["model"] == "qwen2.5:3b"
    assert node.key not in file_of(tmp_path).read_text()


def test_prompts_have_the_lengths_that_were_asked_for_by_the_nodes_count(node: Node, tmp_path: Path) -> None:
    measured(node, tmp_path, *QUICK)
    samples = runfile.read(file_of(tmp_path), Run).stages[0].samples
    assert all(abs(s.counts.prompt_tokens - s.wanted_tokens) <= 1 for s in samples if s.counts)
    assert {s.wanted_tokens for s in samples} == {48, 96}


def test_the_same_seed_asks_the_same(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    asked = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        measured(node, tmp_path / place, *QUICK, "--seed", "5")
        asked.append([r["body"]["messages"][-1]["content"] for r in engine.seen(5)["requests"]])
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == 5


def test_an_open_loop_is_measured(node: Node, tmp_path: Path) -> None:
    figures = measured(node, tmp_path, *QUICK, "--rate", "40", "--arrivals", "constant")
    stage = figures["runs"][0]["stages"][0]
    assert stage["load"] == {"type": "open", "rate_per_s": 40.0, "arrivals": "constant"}
    planned = sorted(sample.planned_s for sample in runfile.read(file_of(tmp_path), Run).stages[0].samples)
    assert [round(later - planned[0], 3) for later in planned] == [0.0, 0.025, 0.05, 0.075, 0.1, 0.125]


def test_a_sweep_ends_where_the_node_is_full(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(tokens_per_s=200)
    arguments = ("--requests", "8", "--max-tokens", "8", "--sweep-to", "4")
    run = measured(node, tmp_path, *arguments)["runs"][0]
    assert [stage["load"]["concurrency"] for stage in run["stages"]] == [1, 2, 4]
    assert run["saturation"]["concurrency"] in (1, 2, 4)


def test_a_full_line_is_counted_as_what_it_is(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(tokens_per_s=20)
    arguments = ("--requests", "12", "--max-tokens", "8", "--rate", "1000", "--warm-up", "0")
    stage = measured(node, tmp_path, *arguments)["runs"][0]["stages"][0]
    assert stage["failures"] == {"429 queue_full": 6}
    assert (stage["answered"], stage["queued"]) == (6, 4)


def test_an_engine_that_breaks_off_is_counted_as_what_it_is(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(fault="error", after=1)
    status, out, _ = bench(node, tmp_path, "--json", "--requests", "1", "--warm-up", "0", "--prompt-tokens", "64")
    assert status == 1  # the first request of all, which counts the prompt, failed as well
    assert "a first request failed" in json.loads(out)["problems"]["pi1"]


def test_a_wrong_key_stops_at_once_with_the_remedy(node: Node, tmp_path: Path) -> None:
    status, _, err = bench(node, tmp_path, *QUICK, key="pk_" + "0" * 12 + "_" + "x" * 40)
    assert status == 1
    assert "pi1: the node does not take this key (401)" in err
    assert not list(tmp_path.rglob("*.json"))


def test_a_prompt_beyond_the_context_is_refused_before_anything_is_measured(node: Node, tmp_path: Path) -> None:
    status, _, err = bench(node, tmp_path, "--prompt-tokens", "64,900")
    assert status == 1
    assert "--prompt-tokens: pi1 refuses a prompt of this length" in err
    assert "N_CTX is 512" in err


def test_a_node_that_is_down_is_told_and_the_others_are_measured(node: Node, tmp_path: Path) -> None:
    down = f"pi2=http://127.0.0.1:{free_port()}"
    status, out, _ = bench(node, tmp_path, *QUICK, "--json", "--node", down)
    figures = json.loads(out)
    assert status == 1
    assert {run["node"]: run["status"] for run in figures["runs"]} == {"pi1": "complete", "pi2": "failed"}
    assert "pi2: nothing answers on" in figures["problems"]["pi2"]


def test_a_stage_that_was_interrupted_is_measured_anew_when_its_run_goes_on(
    node: Node, engine: FakeHandle, tmp_path: Path
) -> None:
    """So no time between the two sittings is in its rates. Its first samples are kept, and its prompts are new."""
    engine.turn(tokens_per_s=20)
    process = started(node, tmp_path, "--requests", "500", "--max-tokens", "2", "--prompt-tokens", "48")
    wait_until(lambda: engine.state()["generations"] > 12, "some were measured")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, (out, err)
    run = runfile.read(file_of(tmp_path), Run)
    first = run.stages[0].samples
    assert (run.status, len(first) >= 5) == ("interrupted", True)
    _shorten(file_of(tmp_path), requests=3)

    (resumed,) = measured(node, tmp_path, "--resume")["runs"]
    assert (resumed["status"], resumed["run"], resumed["stages"][0]["requests"]) == ("complete", run.id, 3)
    assert [mark["code"] for mark in resumed["marks"] if not mark["code"].startswith("client_")] == []
    found = runfile.read(file_of(tmp_path), Run)
    (stage,) = found.stages
    again = next(facts for facts in reversed(found.facts) if facts.moment == "before")
    assert stage.dropped == first
    assert min(sample.planned_s for sample in stage.samples) >= stage.began_s >= again.at_s
    assert not {(s.part, s.number) for s in first} & {(s.part, s.number) for s in stage.samples}


def _shorten(path: Path, requests: int) -> None:
    document = json.loads(path.read_bytes())
    document["settings"]["requests"] = requests
    path.write_text(json.dumps(document))


def test_a_killed_run_leaves_a_whole_file_that_can_be_resumed(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(tokens_per_s=20)
    process = started(node, tmp_path, *QUICK, "--concurrency", "1,2")
    wait_until(lambda: engine.state()["generations"] > 9, "the second stage has begun")
    process.kill()
    process.communicate()
    killed = runfile.read(file_of(tmp_path), Run)
    assert (killed.status, [mark.code for mark in killed.marks], killed.is_valid) == ("running", ["unfinished"], False)
    (resumed,) = measured(node, tmp_path, "--resume")["runs"]
    assert resumed["status"] == "complete"
    assert "unfinished" not in [mark["code"] for mark in resumed["marks"]]


@pytest.mark.parametrize(
    ("part", "name", "was", "said"),
    [
        ("model", "digest", "0000", "the model's digest was 0000"),
        ("settings", "N_CTX", 256, "N_CTX was 256 when it was measured, and is 512 now"),
    ],
)
def test_a_run_does_not_go_on_with_another_model_or_other_settings(
    node: Node, tmp_path: Path, part: str, name: str, was: str | int, said: str
) -> None:
    measured(node, tmp_path, *QUICK)
    document = json.loads(file_of(tmp_path).read_bytes())
    document["status"] = "interrupted"
    document["fingerprint"]["node"][part][name] = was
    file_of(tmp_path).write_text(json.dumps(document))
    status, out, _ = bench(node, tmp_path, "--json", "--resume")
    assert status == 1
    problem = json.loads(out)["problems"]["pi1"]
    assert f"pi1: {said}" in problem
    assert problem.endswith("Begin anew.")


def test_nobody_waits_for_a_node_that_loads_its_model(node: Node, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with (
        running_fake_engine(loaded=False, load_s=60.0) as slow,
        running_node(tmp_path / "node", is_awaited=False, OLLAMA_PORT=slow.port, **SETTINGS) as loading,
    ):
        loading.wait_until_live()
        process = started(loading, tmp_path, *QUICK, "--node", f"pi2=http://127.0.0.1:{node.port}", key=node.key)
        try:
            wait_until(
                lambda: bool(list(tmp_path.glob("pi2/*.json"))), "the other is measured meanwhile", deadline_s=60
            )
        finally:
            process.kill()
            process.communicate()


def test_a_node_that_dies_in_the_middle_keeps_its_samples(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(tokens_per_s=50)
    (tmp_path / "node").mkdir()
    with running_node(tmp_path / "node", OLLAMA_PORT=engine.port, **SETTINGS) as mortal:
        begun = engine.state()["generations"]
        process = started(mortal, tmp_path, "--requests", "500", "--max-tokens", "4", "--prompt-tokens", "48")
        wait_until(lambda: engine.state()["generations"] > begun + 8, "some were measured")
        mortal.stop()
        out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, (out, err)
    run = runfile.read(file_of(tmp_path), Run)
    assert run.status == "failed"
    assert "5 requests in a row got no answer" in run.problem
    assert sum(1 for sample in run.stages[0].samples if sample.counts) >= 5


def test_two_at_once_are_told_of_each_other(node: Node, tmp_path: Path) -> None:
    with runfile.locked(tmp_path, "pi1"):
        status, _, err = bench(node, tmp_path, *QUICK)
    assert status == 1
    assert "another bench measures pi1 now" in err


def test_a_node_that_another_bench_measures_is_asked_nothing(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    target = Target("pi1", f"http://127.0.0.1:{node.port}", node.key)
    settings = Settings(seed=1, prompt_tokens=(48,), max_tokens=2, loads=(ClosedLoop(1),), requests=2)
    before = engine.state()["generations"]
    with runfile.locked(tmp_path, "pi1"):
        (measured,) = Session(tmp_path, lambda progress: None, Event()).measure([target], settings)
    assert "another bench measures pi1 now" in measured.problem
    assert engine.state()["generations"] == before


def test_requests_of_others_make_the_run_invalid(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(tokens_per_s=20)
    process = started(node, tmp_path, *QUICK, "--json")
    wait_until(lambda: engine.state()["generations"] > 4, "the run has begun")
    node.answer(max_tokens=1)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 3
    assert "other_requests" in [mark["code"] for mark in json.loads(out)["runs"][0]["marks"]]


def test_each_stage_begins_on_a_board_that_was_let_cool_down(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temperatures_c, look = iter([75.0, 74.0, 70.0, 73.0, 65.0, 65.0]), node_facts.look

    def as_on_a_pi(*arguments: Any) -> Facts:
        found = look(*arguments)
        return msgspec.structs.replace(found, node={**(found.node or {}), "temperature_c": next(temperatures_c)})

    monkeypatch.setattr(node_facts, "look", as_on_a_pi)
    clock, told = FakeClock(0.0), list[Progress]()
    session = Session(tmp_path, told.append, Event(), Cooling(70.0, clock, clock.advance))
    settings = Settings(seed=1, prompt_tokens=(48,), max_tokens=2, loads=(ClosedLoop(1), ClosedLoop(2)), requests=2)
    (measured,) = session.measure([Target("pi1", f"http://127.0.0.1:{node.port}", node.key)], settings)
    assert measured.problem == ""
    pauses = [progress.stage for progress in told if progress.unit == "pause"]
    assert pauses == ["cooling down from 75 °C", "cooling down from 74 °C", "cooling down from 73 °C"]
    assert clock.now == 3 * PAUSE_S
