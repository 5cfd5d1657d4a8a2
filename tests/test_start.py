"""From the start to ready: the engine that is not there yet, the model that is missing, the warm-up, systemd."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE_S, Node, free_port, running_node, wait_until

from appliance import server
from bench.fake.handle import FakeHandle, running_fake_engine

pytestmark = pytest.mark.tier2

STARTING = {"is_awaited": False, "N_CTX": 256, "N_THREADS": 3, "N_BATCH": 32}


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket as systemd gives it in NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(DEADLINE_S)
        yield notified


def stage_of(node: Node) -> str:
    answer = node.ready()
    return "" if answer.status == 200 else str(answer.body["reason"])


def stages_until_ready(node: Node) -> list[str]:
    stages: list[str] = []

    def is_ready() -> bool:
        stages.append(stage_of(node))
        return stages[-1] == ""

    node.wait_until_live()
    wait_until(is_ready, "the service is ready")
    return stages


def told(systemd: socket.socket) -> Iterator[str]:
    while True:
        yield systemd.recv(4096).decode()


def test_an_engine_that_comes_later_needs_no_restart(tmp_path: Path) -> None:
    port = free_port()
    with running_node(tmp_path, OLLAMA_PORT=port, **STARTING) as node:
        node.wait_until_live()
        wait_until(lambda: str(port) in stage_of(node), "/ready says what is missing")
        refused = node.generate()
        assert (refused.status, refused.json()["error"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        assert node.health()["status"] == "degraded"
        assert node.health()["active_requests"] == 0
        with running_fake_engine(port=port):
            node.wait_until_ready()
            assert node.answer(max_tokens=1)[-1].name == "done"
        assert node.log.count("is Ollama running?") == 1  # once a state, not once a try


def test_a_missing_model_is_pulled_and_the_share_told(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(present=False, loaded=False, pull_steps=100, pull_step_s=0.02)
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **STARTING) as node:
        stages = stages_until_ready(node)
        shares = [int(stage.split()[2]) for stage in stages if stage.startswith("pulling model ") and "%" in stage]
        assert len(set(shares)) > 10
        assert shares == sorted(shares)
        assert f"pulling model {shares[5]} %" in stages
        assert engine.seen()["pulls"] == 1
        assert "Pulling model" in node.log
        assert node.log.count("Pulling model") < 20  # a line a tenth, not one a percent
        assert node.get("/live").status == 200


def test_a_pull_that_fails_is_tried_again(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(present=False, pull_steps=1, pull_step_s=0.01, pull_error="no space left on device")
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **STARTING) as node:
        node.wait_until_live()
        wait_until(lambda: "no space left on device" in stage_of(node), "/ready quotes the engine")
        engine.turn(pull_error="")
        node.wait_until_ready()


def test_sigterm_ends_a_start_that_pulls(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(present=False, pull_steps=1, pull_step_s=60)
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **STARTING) as node:
        node.wait_until_live()
        wait_until(lambda: "pulling model" in stage_of(node), "it pulls")
        node.terminate()
        assert node.wait_for_exit() == 0


def test_a_pull_that_breaks_off_is_tried_again(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(present=False, pull_steps=100, pull_step_s=0.05)
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **STARTING) as node:
        node.wait_until_live()
        wait_until(lambda: "%" in stage_of(node), "it pulls")
        engine.turn(pull_step_s=0)
        engine.go_down(for_s=0.5)
        node.wait_until_ready()
        assert engine.seen()["pulls"] == 2


def test_the_warm_up_uses_the_nodes_own_options(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(loaded=False)
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **{**STARTING, "is_awaited": True}) as node:
        (warm_up,) = engine.seen()["requests"]
        options = warm_up["body"]["options"]
        assert {name: options[name] for name in ("num_ctx", "num_thread", "num_batch")} == {
            "num_ctx": 256,
            "num_thread": 3,
            "num_batch": 32,
        }
        node.answer(max_tokens=1)
        assert engine.seen()["loads"] == 1  # the first request reloads nothing


def test_while_the_model_loads_ready_says_so(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(loaded=False, load_s=1.0)
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **STARTING) as node:
        assert "loading qwen2.5:3b" in stages_until_ready(node)


def test_a_warm_up_that_fails_is_tried_again(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(fault="500", faults=1)
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **STARTING) as node:
        node.wait_until_live()
        node.wait_until_ready()
        assert engine.seen()["generations"] == 2


def test_without_warm_up_it_is_ready_at_once_and_the_first_request_loads(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(loaded=False)
    with running_node(tmp_path, OLLAMA_PORT=engine.port, OLLAMA_WARMUP="false") as node:
        assert engine.seen()["generations"] == 0
        assert node.health()["model_loaded"] is False
        assert node.answer(max_tokens=1)[-1].name == "done"
        assert engine.seen()["loads"] == 1


def test_systemd_is_told_ready_only_when_it_is(engine: FakeHandle, tmp_path: Path, systemd: socket.socket) -> None:
    engine.turn(loaded=False, load_s=30)
    notify = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **STARTING, **notify) as node:
        messages: list[str] = []
        for message in told(systemd):
            messages.append(message)
            if "loading" in message:
                break
        node.wait_until_live()
        assert stage_of(node) == "loading qwen2.5:3b"
        assert not any("READY=1" in message for message in messages)
        engine.turn(load_s=0, loaded=True)
        engine.go_down(for_s=0.1)  # ends the load of 30 s
        assert next(message for message in told(systemd) if "READY=1" in message)
        assert node.ready().status == 200
        node.terminate()
        assert next(message for message in told(systemd) if "STOPPING=1" in message)


def test_the_watchdog_is_petted(engine: FakeHandle, tmp_path: Path, systemd: socket.socket) -> None:
    notify = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **notify):
        pets = (message for message in told(systemd) if message == "WATCHDOG=1")
        assert next(pets) == next(pets)


def test_a_killed_worker_comes_back(engine: FakeHandle, tmp_path: Path) -> None:
    with running_node(tmp_path, OLLAMA_PORT=engine.port) as node:
        engine.turn(fault="hang_first", faults=1)
        node.generate()
        wait_until(lambda: engine.state()["running"] == 1, "the engine, not the service alone, is at it")
        killed = node.worker_pid()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: engine.seen()["running"] == 0, "the engine is rid of the dead worker's generation")
        node.wait_until_ready()
        assert node.worker_pid() != killed
        assert node.health()["active_requests"] == 0
        assert node.answer(max_tokens=1)[-1].name == "done"


def test_a_killed_worker_tells_systemd_again(engine: FakeHandle, tmp_path: Path, systemd: socket.socket) -> None:
    with running_node(tmp_path, OLLAMA_PORT=engine.port, NOTIFY_SOCKET=str(tmp_path / "notify")) as node:
        ready = (message for message in told(systemd) if "READY=1" in message)
        assert next(ready)
        os.kill(node.worker_pid(), signal.SIGKILL)
        assert next(ready)


def test_the_settings_of_a_profile_are_used(engine: FakeHandle, tmp_path: Path) -> None:
    (tmp_path / "node.env").write_text("N_CTX=300\nMAX_TOKENS=5\n")
    settings: dict[str, Any] = {"OLLAMA_PORT": engine.port}
    node = Node(tmp_path, settings, ("--config", "node.env"))
    try:
        node.wait_until_ready()
        assert node.generate().next("done").data["completion_tokens"] == 5
        assert engine.seen()["requests"][-1]["body"]["options"]["num_ctx"] == 300
    finally:
        assert node.stop() == 0


def test_it_may_open_more_files_than_a_shell_allows(engine: FakeHandle, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with running_node(tmp_path, OLLAMA_PORT=engine.port, MAX_QUEUE_SIZE=3000) as node:
            assert resource.prlimit(node.worker_pid(), resource.RLIMIT_NOFILE)[0] >= min(4000, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("call", ["getrlimit", "setrlimit"])
def test_a_sandbox_that_forbids_more_files_stops_no_start(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError if call == "getrlimit" else ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, call, forbid)
    server._allow_open_files(resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE)[0] + 1)
