"""Settings that need a restart: `bench tune --restarts` and `bench verify --restarts` deploy them, and put them back.

`ansible-playbook` is a stand-in that does to a node of the tests what profile.yml does: it takes the profile of the
extra variable, or else the inventory's, restarts the node's service with it, and writes down what it was called with.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from bench_commands import Bench
from harness import DEADLINE_S, Node, free_port, wait_until

from bench.fake.handle import FakeHandle
from bench.running import runfile
from bench.tuning import tune_file
from bench.tuning.tune_file import TuneRun

pytestmark = pytest.mark.tier2

KNOBS = {"parallel": 4}
AXES = ("--ctx", "512", "--threads", "4", "--batch", "128", "--max-tokens", "8", "--budget", "30s", "--restarts")
STAND_IN = """\
#!{python}
import json, pathlib, sys, time
here = pathlib.Path({here!r})
extra = [sys.argv[i + 1] for i, part in enumerate(sys.argv) if part == "-e"]
profile = json.loads(pathlib.Path(extra[0][1:]).read_text())["tuned_profile"]["env"] if extra else None
number = len(list(here.glob("*.call"))) + 1
(here / "fails").exists() and sys.exit("it fails, as it was told")
(here / f"{{number}}.part").write_text(json.dumps({{"env": profile, "arguments": sys.argv[1:]}}))
(here / f"{{number}}.part").rename(here / f"{{number}}.call")
while not (here / f"{{number}}.done").exists():
    time.sleep(0.01)
"""


class Deployed:
    """A node, and the thread that restarts it when the stand-in is called."""

    def __init__(self, folder: Path, engine: FakeHandle) -> None:
        self.folder, self.calls_at = folder / "node", folder / "calls"
        self.folder.mkdir()
        self.calls_at.mkdir()
        self.own = {"MAX_CONCURRENT_REQUESTS": 1, "N_CTX": 512, "N_THREADS": 4, "N_BATCH": 128}
        self.settings = {"OLLAMA_PORT": engine.port, "PORT": free_port()}
        self.node = self._start(self.own)
        program = folder / "bin" / "ansible-playbook"
        program.parent.mkdir()
        program.write_text(STAND_IN.format(python=sys.executable, here=str(self.calls_at)))
        program.chmod(0o755)
        self.program = program
        self.is_over = self.is_stuck = False
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    @property
    def calls(self) -> list[dict[str, object]]:
        paths = sorted(self.calls_at.glob("*.call"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text()) for path in paths]

    @property
    def slots_in_force(self) -> int | None:
        """What was deployed last, and has come to its end."""
        done = [call["env"] for number, call in enumerate(self.calls, 1) if (self.calls_at / f"{number}.done").exists()]
        return done[-1]["MAX_CONCURRENT_REQUESTS"] if done and isinstance(done[-1], dict) else None

    def stop(self) -> None:
        self.is_over = True
        self.thread.join()
        self.node.stop()

    def _start(self, env: dict[str, object]) -> Node:
        known = {name: value for name, value in env.items() if not name.startswith("OLLAMA_")}
        node = Node(self.folder, {**self.own, **self.settings, **known})
        node.wait_until_ready()
        return node

    def _serve(self) -> None:
        number = 1
        while not self.is_over:
            call = self.calls_at / f"{number}.call"
            if not call.exists() or self.is_stuck:
                threading.Event().wait(0.01)
                continue
            env = json.loads(call.read_text())["env"]
            self.node.stop()
            self.node = self._start(env or self.own)
            (self.calls_at / f"{number}.done").touch()
            number += 1


@pytest.fixture
def deployed(engine: FakeHandle, tmp_path: Path) -> Iterator[Deployed]:
    engine.turn(tokens_per_s=100)
    found = Deployed(tmp_path, engine)
    yield found
    found.stop()


@pytest.fixture
def bench(deployed: Deployed, tmp_path: Path) -> Bench:
    """Programs of Ansible are looked for beside the Python that runs, so this one lies beside the stand-in."""
    made = Bench(tmp_path, pi1=deployed.node)
    made.python = str(deployed.program.with_name("python"))
    Path(made.python).symlink_to(sys.executable)
    deployed.program.with_name("ansible-inventory").symlink_to(Path(sys.executable).with_name("ansible-inventory"))
    return made


def test_slots_are_tuned_by_deploying_them_and_the_nodes_own_are_put_back(bench: Bench, deployed: Deployed) -> None:
    (told,) = bench.told("tune", *AXES)["nodes"]
    assert told["written"] == "written"
    found = bench.profile()
    assert found is not None
    assert found.env["MAX_CONCURRENT_REQUESTS"] == 4
    envs = [call["env"] for call in deployed.calls]
    assert {env["MAX_CONCURRENT_REQUESTS"] for env in envs if isinstance(env, dict)} >= {2, 4}
    assert envs[-1] is None
    assert deployed.node.health()["max_concurrent"] == 1
    assert all(call["arguments"][-2:] != ["-e"] for call in deployed.calls)


def test_an_interrupted_tune_puts_the_nodes_own_settings_back(bench: Bench, deployed: Deployed) -> None:
    process = bench.start("tune", *AXES)
    wait_until(lambda: len(deployed.calls) > 0, "something was deployed")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S * 2)
    assert process.returncode == 130, err
    assert deployed.calls[-1]["env"] is None
    path = runfile.newest(bench.results, "pi1", tune_file.KIND)
    assert path is not None
    assert runfile.read(path, TuneRun).temporary_env is None


def test_a_second_ctrl_c_ends_it_at_once_and_the_next_tune_puts_back_what_it_left(
    bench: Bench, deployed: Deployed
) -> None:
    process = bench.start("tune", *AXES, "--slots", "4")
    wait_until(lambda: deployed.slots_in_force == 4, "other slots were deployed", deadline_s=4 * DEADLINE_S)
    deployed.is_stuck = True
    process.send_signal(signal.SIGINT)
    wait_until(lambda: deployed.calls[-1]["env"] is None, "it puts the node's own settings back, for ever")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    assert "--resume goes on with it; once more ends at once" in err
    wait_until(lambda: not playbooks_of(bench), "no playbook goes on by itself")
    path = runfile.newest(bench.results, "pi1", tune_file.KIND)
    assert path is not None
    assert runfile.read(path, TuneRun).temporary_env is not None
    before, deployed.is_stuck = len(deployed.calls), False
    bench.told("tune", "--resume", "--force")
    assert deployed.calls[before]["env"] is None
    assert runfile.read(path, TuneRun).temporary_env is None


def playbooks_of(bench: Bench) -> list[str]:
    """The commands of playbooks that run on this inventory."""
    return [line for line in commands() if "ansible-playbook" in line and str(bench.inventory) in line]


def commands() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield file.read_text(errors="replace").replace("\0", " ")


def killed_while_others_are_in_force(bench: Bench, deployed: Deployed, engine: FakeHandle) -> TuneRun:
    """A tune that was killed after it had deployed settings for measuring."""
    process = bench.start("tune", *AXES, "--slots", "4")
    wait_until(lambda: deployed.slots_in_force == 4, "other slots were deployed", deadline_s=4 * DEADLINE_S)
    engine.turn(tokens_per_s=5)
    begun = engine.state()["generations"]
    wait_until(lambda: engine.state()["generations"] > begun, "it is being measured")
    process.kill()
    process.communicate()
    engine.turn(tokens_per_s=100)
    path = runfile.newest(bench.results, "pi1", tune_file.KIND)
    assert path is not None
    run = runfile.read(path, TuneRun)
    assert run.temporary_env is not None
    assert deployed.node.health()["max_concurrent"] == 4
    return run


@pytest.mark.parametrize(
    "command", [("tune", "--ctx", "512", "--threads", "4", "--batch", "128"), ("tune", "--resume")]
)
def test_after_a_kill_the_next_tune_puts_the_nodes_own_settings_back_first(
    bench: Bench, deployed: Deployed, engine: FakeHandle, command: tuple[str, ...]
) -> None:
    killed = killed_while_others_are_in_force(bench, deployed, engine)
    before = len(deployed.calls)
    (told,) = bench.told(*command, *(() if "--resume" in command else ("--max-tokens", "8")))["nodes"]
    assert deployed.calls[before]["env"] is None
    assert deployed.calls[-1]["env"] is None
    assert deployed.node.health()["max_concurrent"] == 1
    assert (told["run"] == killed.id) == ("--resume" in command)
    left = runfile.read(bench.results / "pi1" / f"{killed.id}.json", TuneRun)
    assert left.temporary_env is None


def test_after_a_kill_nobody_measures_the_node_as_if_these_were_its_own_settings(
    bench: Bench, deployed: Deployed, engine: FakeHandle
) -> None:
    killed = killed_while_others_are_in_force(bench, deployed, engine)
    problem = bench.told("run", "--requests", "2", status=1)["problems"]["pi1"]
    assert "a bench that was killed left settings for measuring in force: {'MAX_CONCURRENT_REQUESTS': 4" in problem
    assert str(bench.results / "pi1" / f"{killed.id}.json") in problem
    assert f"`bench tune -i {bench.inventory / 'hosts.yml'} --limit pi1 --resume` puts the node's own back" in problem


def test_beside_a_tune_that_has_deployed_settings_nobody_is_told_that_it_was_killed(
    bench: Bench, deployed: Deployed
) -> None:
    process = bench.start("tune", *AXES, "--slots", "4")
    wait_until(lambda: deployed.slots_in_force == 4, "other slots were deployed", deadline_s=4 * DEADLINE_S)
    deployed.is_stuck = True
    try:
        problem = bench.told("run", "--requests", "2", status=1)["problems"]["pi1"]
        assert problem == f"another bench measures pi1 now (process {process.pid}); wait for its end, or stop it."
    finally:
        deployed.is_stuck = False
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=4 * DEADLINE_S)


def test_what_cannot_be_deployed_is_ruled_out_with_the_playbooks_words(bench: Bench, deployed: Deployed) -> None:
    (deployed.calls_at / "fails").touch()
    (told,) = bench.told("tune", *AXES, status=1)["nodes"]
    assert "it fails, as it was told" in told["problem"]
    where = bench.inventory / "hosts.yml"
    own = f"put its own profile back with: ansible-playbook -i {where} ansible/profile.yml --limit pi1,localhost"
    assert own in told["problem"]


def test_two_profiles_that_differ_in_slots_are_verified_by_deploying_both(bench: Bench, deployed: Deployed) -> None:
    bench.give(MAX_CONCURRENT_REQUESTS=2)
    bench.give(MAX_CONCURRENT_REQUESTS=1)
    (told,) = bench.told("verify", "--restarts", "--rounds", "6", "--max-tokens", "8", status=3)["nodes"]
    assert told["verdict"]["kind"] == "slower"
    assert deployed.calls[-1]["env"] is None
