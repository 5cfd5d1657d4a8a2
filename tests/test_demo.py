"""The demo on real parts: what it leaves behind, how it takes on profiles, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_process import Demo, new_demo, running_demo

from bench.demo import node, pidfile
from bench.demo.__main__ import ROUNDS
from bench.demo.loop import PLAYBOOK
from bench.inventory import tuned_file
from bench.inventory.tuned_profile import Provenance, TunedProfile
from bench.running import runfile
from bench.statistics.comparison import LOOKS
from bench.tuning.arms import LEAST_ROUNDS
from bench.tuning.tune_file import TuneRun
from bench.tuning.verify_file import VerifyRun

SMALLEST = ("--budget", "8s", "--rounds", "6", "--max-tokens", "4")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("clone")) as demo:
        yield demo


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What a demo prints up to the first line that begins with `text`."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith(text):
            return printed
    pytest.fail(f"the demo ended before {text!r}:\n{printed}")


def test_a_deployed_profile_has_every_setting_of_a_node() -> None:
    template = PLAYBOOK.with_name("templates") / node.FILE
    names = [line.partition("=")[0] for line in template.read_text().splitlines() if "=" in line]
    assert names == list(node.DEFAULTS)


def test_it_takes_as_many_rounds_as_a_verification_has() -> None:
    assert (ROUNDS.min, ROUNDS.max) == (LEAST_ROUNDS, LOOKS[-1])


def test_a_process_that_works_elsewhere_is_not_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not pidfile.end(process.pid, tmp_path, 1.0)
        assert process.poll() is None
        process.communicate(b"\n")
    assert process.returncode == 0


@pytest.mark.tier2
def test_it_goes_through_the_whole_loop_and_leaves_nothing_running(tmp_path: Path) -> None:
    demo = new_demo(tmp_path)
    status, printed = demo.run("run", *SMALLEST)
    assert status == 0, printed
    assert demo.processes == []
    results, inventory = demo.folder / "results", tmp_path / "inventory" / "demo"
    report = (results / "report.html").read_text()
    for name in ("demo1", "demo2"):
        tune = runfile.newest(results, name, "tune")
        assert tune is not None
        assert runfile.read(tune, TuneRun).status == "complete"
        assert name in report
        if tuned_file.read(inventory, name) is not None:
            verified = runfile.newest(results, name, "verify")
            assert verified is not None
            assert runfile.read(verified, VerifyRun).verdict is not None


@pytest.mark.tier2
def test_a_profile_of_the_inventory_is_in_force_after_its_playbook_and_stays_so(up: Demo) -> None:
    inventory, key = up.clone / "inventory" / "demo", (up.folder / "key").read_text().strip()
    profile = TunedProfile(
        env={"N_THREADS": 1, "N_CTX": 1024}, measured={}, provenance=Provenance(run="a test", at="2026-01-31T12:00:00Z")
    )
    tuned_file.write(inventory, "demo2", profile)
    for changes in ("changed=2", "changed=0"):
        printed = deploy(up)
        assert f"demo2                      : ok=2    {changes}" in printed, printed
    assert node.in_force(up.port, key) == {
        **node.DEFAULTS,
    }
    assert node.in_force(up.port + 1, key) == {**node.DEFAULTS, "N_THREADS": "1", "N_CTX": "1024"}


def deploy(demo: Demo) -> str:
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory/demo", str(PLAYBOOK)]
    done = subprocess.run(command, cwd=demo.clone, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.tier2
def test_a_second_demo_in_the_folder_says_that_one_runs(up: Demo) -> None:
    status, printed = up.run("run", "--once")
    assert status == 1
    assert "a demo runs already in this folder; `make demo-down` ends it." in printed
    assert len(up.processes) >= 5  # two nodes of two processes and a worker each, and who holds them


@pytest.mark.tier2
def test_taken_ports_are_named_with_others_to_choose(tmp_path: Path) -> None:
    demo = new_demo(tmp_path)
    with socket.create_server(("127.0.0.1", demo.port + 1)):
        status, printed = demo.run("up")
    assert status == 1
    assert f"port {demo.port + 1} for demo2 (PORT): Address already in use." in printed
    assert "Choose others: make demo PORT=" in printed
    assert demo.processes == []


@pytest.mark.tier2
def test_an_interruption_in_the_middle_of_the_search_leaves_nothing_running(tmp_path: Path) -> None:
    demo = new_demo(tmp_path)
    process = demo.start("run")
    read_until(process, "$ bench tune")
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert demo.processes == []
    assert "Traceback" not in printed


@pytest.mark.tier2
def test_down_cleans_up_after_a_demo_that_was_killed(tmp_path: Path) -> None:
    demo = new_demo(tmp_path)
    process = demo.start("run")
    read_until(process, "demo2")
    process.kill()
    process.communicate(timeout=60)
    assert demo.run("down")[0] == 0
    assert demo.processes == []
    assert demo.run("down") == (0, "no demo runs\n")
