"""`bench verify` against a real node with a fake engine whose pace depends on its settings."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from bench_commands import Bench
from harness import DEADLINE_S, Node, wait_until

from bench.fake.handle import FakeHandle
from bench.inventory import tuned_file
from bench.running import runfile
from bench.tuning import verify_file
from bench.tuning.verify_file import VerifyRun

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "N_CTX": 512, "N_THREADS": 2, "N_BATCH": 64}
KNOBS = {"parallel": 2}
QUICK = ("--max-tokens", "8")
NOW, OTHER = {"N_CTX": 512, "N_THREADS": 2, "N_BATCH": 64}, {"N_CTX": 512, "N_THREADS": 1, "N_BATCH": 64}
EXIT_SLOWER = 3


@pytest.fixture
def bench(node: Node, engine: FakeHandle, tmp_path: Path) -> Bench:
    """A node whose profile is in force, and was another before."""
    engine.turn(tokens_per_s=100)
    made = Bench(tmp_path, pi1=node)
    made.give(**OTHER)
    made.give(**NOW)
    return made


def test_a_profile_that_helped_is_faster_and_stays(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=2:1.3")
    (told,) = bench.told("verify", *QUICK)["nodes"]
    assert told["words"].startswith("faster by ")
    assert (told["verdict"]["kind"], told["put_back"]) == ("faster", False)
    assert abs(told["verdict"]["change"] - 0.3) < 0.1
    found = bench.profile()
    assert found is not None
    assert found.env == NOW


def test_a_profile_that_made_it_slower_is_put_back(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=1:1.3")
    status, out, _ = bench("verify", *QUICK)
    assert status == EXIT_SLOWER
    assert "slower by " in out
    assert "ansible/profile.yml --limit pi1,localhost" in out
    found, before = bench.profile(), tuned_file.read_previous(bench.inventory, "pi1")
    assert found is not None
    assert before is not None
    assert (found.env, before.env) == (OTHER, NOW)


def test_a_dry_run_puts_nothing_back(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=1:1.3")
    (told,) = bench.told("verify", *QUICK, "--dry-run", status=EXIT_SLOWER)["nodes"]
    found = bench.profile()
    assert (told["verdict"]["kind"], told["put_back"]) == ("slower", False)
    assert found is not None
    assert found.env == NOW


def test_telling_a_verdict_again_puts_nothing_back_twice(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=1:1.3")
    bench.told("verify", *QUICK, status=EXIT_SLOWER)
    bench.told("verify", "--resume", status=EXIT_SLOWER)
    found = bench.profile()
    assert found is not None
    assert found.env == OTHER


def test_a_verdict_that_could_not_be_remembered_puts_nothing_back_twice(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=1:1.3")
    (told,) = bench.told("verify", *QUICK, status=EXIT_SLOWER)["nodes"]
    document = json.loads(Path(told["file"]).read_bytes())
    Path(told["file"]).write_text(json.dumps({**document, "restored": False}))
    bench.told("verify", "--resume", status=EXIT_SLOWER)
    found = bench.profile()
    assert found is not None
    assert found.env == OTHER


def test_another_profile_that_stands_there_by_now_is_left_alone(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=1:1.3")
    bench.told("verify", *QUICK, "--dry-run", status=EXIT_SLOWER)
    bench.give(N_CTX=2048)
    status, out, _ = bench("verify", "--resume", "--apply")
    assert status == EXIT_SLOWER
    assert "another profile stands in the inventory now" in out
    assert "deploy" not in out
    (told,) = bench.told("verify", "--resume", status=EXIT_SLOWER)["nodes"]
    found = bench.profile()
    assert (told["put_back"], told["deploy_with"]) == (False, None)
    assert found is not None
    assert found.env == {"N_CTX": 2048}


def test_a_first_profile_that_made_it_slower_gives_way_to_the_defaults(
    node: Node, engine: FakeHandle, tmp_path: Path
) -> None:
    engine.turn(tokens_per_s=100, factors="num_thread=4:1.3")
    bench = Bench(tmp_path, pi1=node)
    bench.give(**NOW)
    status, out, _ = bench("verify", *QUICK)
    assert status == EXIT_SLOWER
    assert "it was the node's first profile, so there is none in the inventory now: the defaults count again" in out
    assert "previous" not in out
    assert bench.profile() is None


def test_a_deployment_that_fails_does_not_hide_that_the_inventory_changed(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(factors="num_thread=1:1.3")
    bench.told("verify", *QUICK, "--dry-run", status=EXIT_SLOWER)
    programs = bench.folder / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    (programs / "ansible-inventory").symlink_to(Path(sys.executable).with_name("ansible-inventory"))
    (programs / "ansible-playbook").write_text("#!/bin/sh\necho it fails\nexit 2\n")
    (programs / "ansible-playbook").chmod(0o755)
    bench.python = str(programs / "python")
    status, out, err = bench("verify", "--resume", "--apply")
    assert (status, "it fails" in err) == (1, True)
    assert "the previous profile is in the inventory again; deploy that with: ansible-playbook -i " in out
    found = bench.profile()
    assert found is not None
    assert found.env == OTHER


def test_a_profile_that_was_measured_on_another_model_is_not_verified(bench: Bench) -> None:
    path = tuned_file.path_of(bench.inventory, "pi1")
    path.write_text(path.read_text().replace("model_digest: null", 'model_digest: "0000"'))
    (told,) = bench.told("verify", *QUICK, status=1)["nodes"]
    assert "pi1: its profile is stale: the model's digest was 0000 when it was measured" in told["problem"]
    assert f"bench tune -i {bench.inventory}/hosts.yml --limit pi1" in told["problem"]


def test_the_first_profile_is_compared_with_the_defaults(node: Node, engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(tokens_per_s=100, factors="num_thread=2:1.3")
    bench = Bench(tmp_path, pi1=node)
    bench.give(**NOW)
    (told,) = bench.told("verify", *QUICK)["nodes"]
    assert told["old"] == {"N_CTX": 512, "N_THREADS": 4, "N_BATCH": 128}


def test_a_profile_that_is_not_in_force_is_not_verified(bench: Bench) -> None:
    bench.give(N_CTX=1024)
    (told,) = bench.told("verify", *QUICK, status=1)["nodes"]
    assert "N_CTX is 512 on the node and should be 1024" in told["problem"]
    deploying = f"ansible-playbook -i {bench.inventory}/hosts.yml ansible/profile.yml --limit pi1,localhost"
    assert deploying in told["problem"]


def test_what_only_a_restart_changes_needs_the_word_for_it(bench: Bench) -> None:
    bench.give(**NOW, OLLAMA_KV_CACHE_TYPE="q8_0")
    (told,) = bench.told("verify", *QUICK, status=1)["nodes"]
    assert "OLLAMA_KV_CACHE_TYPE differ" in told["problem"]
    assert "--restarts" in told["problem"]


def test_an_interrupted_verification_goes_on(bench: Bench, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=120, factors="num_thread=2:1.3")
    process = bench.start("verify", *QUICK)
    wait_until(lambda: engine.state()["generations"] > 8, "a round was measured")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    path = runfile.newest(bench.results, "pi1", verify_file.KIND)
    assert path is not None
    kept = runfile.read(path, VerifyRun)
    assert (kept.status, len(kept.rounds) > 0, kept.verdict) == ("interrupted", True, None)
    (told,) = bench.told("verify", "--resume")["nodes"]
    assert (told["run"], told["verdict"]["kind"]) == (kept.id, "faster")
    assert runfile.read(path, VerifyRun).rounds[: len(kept.rounds)] == kept.rounds


def test_a_node_without_a_profile_is_told_of_bench_tune(node: Node, tmp_path: Path) -> None:
    (told,) = Bench(tmp_path, pi1=node).told("verify", status=1)["nodes"]
    assert "`bench tune` writes one" in told["problem"]
