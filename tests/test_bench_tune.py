"""`bench tune` against real nodes with a fake engine whose pace depends on its settings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bench_commands import Bench
from harness import DEADLINE_S, PROJECT, Node, free_port, wait_until

from bench.fake.handle import FakeHandle
from bench.inventory import tuned_file
from bench.running import runfile
from bench.tuning import tune_file
from bench.tuning.tune_file import TuneRun

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "N_CTX": 512, "N_THREADS": 1, "N_BATCH": 64}
KNOBS = {"parallel": 2}
GIT = shutil.which("git") or "git"
FAST = "num_thread=2:2.0 num_batch=128:0.5"
AXES = ("--ctx", "512", "--threads", "1,2", "--batch", "64,128", "--max-tokens", "8", "--budget", "30s")


@pytest.fixture
def bench(node: Node, engine: FakeHandle, tmp_path: Path) -> Bench:
    engine.turn(tokens_per_s=100, factors=FAST)
    return Bench(tmp_path, pi1=node)


def newest(bench: Bench) -> TuneRun:
    path = runfile.newest(bench.results, "pi1", tune_file.KIND)
    assert path is not None
    return runfile.read(path, TuneRun)


def test_it_finds_the_best_settings_and_writes_them(bench: Bench) -> None:
    (told,) = bench.told("tune", *AXES)["nodes"]
    assert (told["written"], told["outcome"]["stopped"]) == ("written", "sure")
    found = bench.profile()
    assert found is not None
    assert {name: found.env[name] for name in SETTINGS if name in found.env} == {
        "N_CTX": 512,
        "N_THREADS": 2,
        "N_BATCH": 64,
    }
    speed = found.measured["decode_tokens_per_s"]
    assert speed.against is not None
    assert speed.against.settings == "N_CTX=512 N_THREADS=1 N_BATCH=64"
    assert speed.ci95[0] <= speed.median <= speed.ci95[1]
    assert found.provenance.ollama == "0.32.15"


def test_its_file_holds_every_block_with_its_samples(bench: Bench, node: Node) -> None:
    bench.told("tune", *AXES)
    run = newest(bench)
    assert run.status == "complete"
    assert all(record.samples and record.facts for record in run.blocks)
    assert run.outcome is not None
    assert run.outcome.blocks == len(run.blocks)
    assert node.key not in runfile.path_of(run, bench.results).read_text()


def test_the_node_has_its_own_settings_afterwards(bench: Bench, engine: FakeHandle, node: Node) -> None:
    bench.told("tune", *AXES)
    node.answer(max_tokens=1)
    options = engine.seen(1)["requests"][0]["body"]["options"]
    assert (options["num_ctx"], options["num_thread"], options["num_batch"]) == (512, 1, 64)


def test_a_dry_run_shows_the_diff_and_writes_nothing(bench: Bench) -> None:
    status, out, _ = bench("tune", *AXES, "--dry-run")
    assert status == 0
    assert "+    N_THREADS: 2" in out
    assert bench.profile() is None


def test_settings_that_are_best_already_are_left_alone(bench: Bench) -> None:
    (told,) = bench.told("tune", *AXES, "--threads", "1", "--batch", "64,128")["nodes"]
    assert (told["written"], told["outcome"]["is_better"]) == ("in force", False)
    assert bench.profile() is None


def test_what_is_not_surely_better_is_written_only_by_force(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=2:1.005")
    arguments = (*AXES, "--batch", "64", "--budget", "2s")
    (told,) = bench.told("tune", *arguments, "--force")["nodes"]
    assert told["written"] in ("written", "in force")
    assert (bench.profile() is not None) == (told["written"] == "written")


def test_settings_that_the_engine_cannot_load_are_ruled_out_with_its_reason(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=2:2.0 num_batch=128:0", error="model requires more system memory")
    (told,) = bench.told("tune", *AXES)["nodes"]
    ruled_out = {json.dumps(f["settings"]): f["reason"] for f in told["outcome"]["fates"] if f["name"] == "ruled out"}
    assert len(ruled_out) == 2
    assert all("N_BATCH" in settings and "128" in settings for settings in ruled_out)
    assert all("model requires more system memory" in reason for reason in ruled_out.values())
    assert told["written"] == "written"


def test_an_interrupted_tune_keeps_its_blocks_and_goes_on(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=120)
    process = bench.start("tune", *AXES)
    wait_until(lambda: engine.state()["generations"] > 12, "some blocks were measured")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    kept = newest(bench)
    assert (kept.status, len(kept.blocks) > 2, bench.profile()) == ("interrupted", True, None)

    (told,) = bench.told("tune", "--resume")["nodes"]
    run = newest(bench)
    assert (told["run"], told["written"], run.blocks[: len(kept.blocks)]) == (kept.id, "written", kept.blocks)


def test_a_killed_tune_leaves_a_whole_file_that_can_be_resumed(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=20)
    process = bench.start("tune", *AXES)
    wait_until(lambda: engine.state()["generations"] > 6, "some blocks were measured")
    process.kill()
    process.communicate()
    assert newest(bench).status == "running"
    engine.turn(tokens_per_s=100)
    assert bench.told("tune", "--resume")["nodes"][0]["status"] == "complete"


def test_resuming_refuses_another_race(bench: Bench) -> None:
    status, _, err = bench("tune", "--resume", "--budget", "1m")
    assert status == 2
    assert "leave --budget out" in err


def test_two_tunes_of_one_inventory_are_told_of_each_other(bench: Bench) -> None:
    with tuned_file.locked(bench.inventory):
        status, _, err = bench("tune", *AXES)
    assert status == 1
    assert f"another bench tunes {bench.inventory} now (process {os.getpid()}); wait for its end, or stop it" in err


def test_a_node_that_somebody_measures_is_told(bench: Bench) -> None:
    with runfile.locked(bench.results, "pi1"):
        (told,) = bench.told("tune", *AXES, status=1)["nodes"]
    assert f"another bench measures pi1 now (process {os.getpid()})" in told["problem"]


def test_a_node_that_is_down_does_not_hold_up_the_others(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(tokens_per_s=100, factors=FAST)
    bench = Bench(tmp_path, pi1=node, pi2=f"http://127.0.0.1:{free_port()}")
    one, two = bench.told("tune", *AXES, status=1)["nodes"]
    assert (one["status"], two["written"]) == ("complete", "nothing")
    assert "pi2: nothing answers on" in two["problem"]
    assert "systemctl status pi-llm" in two["problem"]


def test_a_wrong_key_is_told_with_the_remedy(node: Node, tmp_path: Path) -> None:
    bench = Bench(tmp_path, pi1=f"http://127.0.0.1:{node.port}")
    (told,) = bench.told("tune", *AXES, status=1)["nodes"]
    assert "pi1: the node does not take this key (401)" in told["problem"]
    assert "pi-llm keys create" in told["problem"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tuned_profile: nonsense\n", "allowed is format, env, measured and provenance"),
        ("tuned_profile:\n  env: [\n", "line 3"),
        ("tuned_profile: {format: 1, env: {N_CTX: 7}, measured: {}, provenance: {run: r, at: a}}", "env.N_CTX is 7"),
    ],
)
def test_a_tuned_yml_that_was_edited_into_nonsense_is_told_before_anything_is_measured_and_the_others_go_on(
    node: Node, engine: FakeHandle, tmp_path: Path, text: str, said: str
) -> None:
    engine.turn(tokens_per_s=100, factors=FAST)
    bench = Bench(tmp_path, pi1=node, pi2=node)
    path = bench.give("pi2", N_CTX=512)
    path.write_text(text)
    told = {each["node"]: each for each in bench.told("tune", *AXES, "--dry-run", status=1)["nodes"]}
    assert (told["pi1"]["status"], told["pi2"]["run"]) == ("complete", None)
    assert f"{path} is no profile of bench: " in told["pi2"]["problem"]
    assert said in told["pi2"]["problem"]
    assert path.read_text() == text


def test_a_tuned_yml_that_was_edited_into_nonsense_is_replaced_by_force(bench: Bench) -> None:
    bench.give(N_CTX=512).write_text("tuned_profile: nonsense\n")
    (told,) = bench.told("tune", *AXES, "--force")["nodes"]
    assert told["written"] == "written"


def test_a_file_that_would_no_longer_be_read_is_told_before_anything_is_measured_whatever_force(bench: Bench) -> None:
    (bench.inventory / "host_vars").mkdir()
    (bench.inventory / "host_vars" / "pi1.yml").write_text("mine: 1\n")
    (told,) = bench.told("tune", *AXES, "--force", status=1)["nodes"]
    assert told["run"] is None
    assert "pi1.yml would no longer be read" in told["problem"]


def test_limits_that_no_settings_keep_are_told_by_the_status(bench: Bench) -> None:
    status, out, _ = bench("tune", *AXES, "--min-ctx", "1024")
    assert status == 3, out
    assert "nothing to write: no settings could be measured within the limits" in out
    assert bench.profile() is None


def test_a_commit_holds_the_profiles_alone_with_the_table_in_its_message(bench: Bench) -> None:
    def git(*arguments: str) -> str:
        command = [GIT, *arguments]
        return subprocess.run(command, cwd=bench.folder, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    git("config", "user.name", "A")
    git("config", "user.email", "a@b")
    (bench.folder / "other").write_text("of somebody")
    git("add", "other")
    told = bench.told("tune", *AXES, "--commit")
    assert told["commit"]
    assert git("show", "--name-only", "--format=").split() == ["inventory/host_vars/pi1/tuned.yml"]
    message = git("log", "-1", "--format=%B")
    assert "N_CTX=512 N_THREADS=1 N_BATCH=64" in message
    assert "faster by" in message
    assert git("status", "--porcelain", "other") == "A  other\n"


def test_nothing_is_committed_without_being_asked(bench: Bench) -> None:
    subprocess.run([GIT, "init", "-q"], cwd=bench.folder, check=True)
    assert bench.told("tune", *AXES)["commit"] is None
    found = subprocess.run([GIT, "log"], cwd=bench.folder, capture_output=True)
    assert found.returncode != 0


def test_a_node_that_is_named_by_its_url_alone_has_no_place_for_a_profile(bench: Bench, node: Node) -> None:
    (bench.folder / "key").write_text(node.key)
    process = subprocess.run(
        [sys.executable, "-m", "bench", "tune", "--json", "--node", f"pi1=http://127.0.0.1:{node.port}", *AXES,
         "--key-file", "key", "--results", str(bench.results)],
        cwd=bench.folder, env={"PATH": bench.path, "PYTHONPATH": str(PROJECT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["nodes"][0]["written"] == "found"
