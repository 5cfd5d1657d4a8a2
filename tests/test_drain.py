"""Draining: nothing new is taken, what runs finishes, what waits is told; and what each signal does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE_S, Event, Exchange, Node, free_port, names_of, running_node, wait_until

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 1, "MAX_QUEUE_SIZE": 4, "DRAIN_S": 5}


@pytest.fixture
def own_node(engine: FakeHandle, tmp_path: Path) -> Iterator[Node]:
    """A service of the test's own, to be ended by it."""
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **{**SETTINGS, "DRAIN_S": 3}) as node:
        yield node


def without_pings(events: Iterator[Event]) -> list[Event]:
    return [event for event in events if event.name != "ping"]


def drain(node: Node) -> None:
    node.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: node.ready().status == 503, "it drains")


def resume(node: Node) -> None:
    node.process.send_signal(signal.SIGUSR2)
    node.wait_until_ready()


@pytest.fixture
def drained(node: Node) -> Iterator[Node]:
    drain(node)
    yield node
    resume(node)


def one_running_one_waiting(node: Node, engine: FakeHandle, **fields: Any) -> tuple[Exchange, Exchange]:
    engine.turn(tokens_per_s=10)
    running = node.generate(max_tokens=10)
    node.wait_until_busy(running=1)
    waiting = node.generate(**fields)
    node.wait_until_busy(running=1, waiting=1)
    return running, waiting


def test_ready_says_draining(drained: Node) -> None:
    answer = drained.ready()
    assert (answer.status, answer.body["reason"]) == (503, "draining")
    assert drained.get("/live").status == 200
    assert drained.get("/health").status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_new_generation_is_a_503_with_retry_after(drained: Node, stream: bool) -> None:
    exchange = drained.generate(stream=stream)
    assert (exchange.status, exchange.json()["error"]) == (503, "not_ready")
    assert int(exchange.headers["retry-after"]) == exchange.json()["retry_after_s"] >= 1
    assert "draining" in exchange.json()["detail"]


def test_what_runs_finishes(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=10)
    exchange = node.generate(max_tokens=5)
    node.wait_until_busy(running=1)
    drain(node)
    assert names_of(without_pings(exchange.events())) == ["token"] * 5 + ["done"]
    resume(node)


def test_what_waits_gets_an_error_event(node: Node, engine: FakeHandle) -> None:
    _, waiting = one_running_one_waiting(node, engine)
    drain(node)
    events = without_pings(waiting.events())
    assert names_of(events) == ["queued", "error"]
    assert events[-1].data["error"] == "not_ready"
    assert events[-1].data["retry_after_s"] >= 1
    resume(node)


def test_what_waits_without_a_stream_gets_a_503(node: Node, engine: FakeHandle) -> None:
    _, waiting = one_running_one_waiting(node, engine, stream=False)
    drain(node)
    assert (waiting.status, waiting.json()["error"]) == (503, "not_ready")
    assert int(waiting.headers["retry-after"]) >= 1
    resume(node)


def test_after_resume_it_serves_again(drained: Node) -> None:
    resume(drained)
    assert drained.answer(max_tokens=1)[-1].name == "done"


def test_the_commands_drain_and_resume(node: Node) -> None:
    assert node.command("drain").returncode == 0
    assert node.ready().body["reason"] == "draining"
    assert node.command("resume").returncode == 0
    node.wait_until_ready()


def test_the_command_waits_for_what_runs(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=10)
    exchange = node.generate(max_tokens=10)
    node.wait_until_busy(running=1)
    assert node.command("drain").returncode == 0
    assert node.health()["active_requests"] == 0
    assert exchange.next("done")
    resume(node)


def test_the_command_says_when_something_still_runs(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    node.generate()
    node.wait_until_busy(running=1)
    result = node.command("drain", "--wait", "0.5")
    assert result.returncode == 1
    assert "1 requests run" in result.stderr
    resume(node)


def test_a_service_that_ends_while_it_drains_is_idle(own_node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    own_node.generate()
    own_node.wait_until_busy(running=1)
    with ThreadPoolExecutor() as pool:
        draining = pool.submit(own_node.command, "drain", "--wait", str(DEADLINE_S))
        wait_until(lambda: own_node.ready().status == 503, "it drains")
        own_node.stop()
    assert draining.result().returncode == 0


def test_without_a_service_the_commands_say_so(tmp_path: Path, running: Node) -> None:
    for command in ("drain", "resume"):
        result = subprocess.run(
            [sys.executable, "-m", "appliance", command],
            env={**running.env, "PID_FILE": "nobody.pid"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert result.returncode == 1
        assert "no service runs" in result.stderr


def test_if_running_takes_no_service_for_drained(tmp_path: Path, running: Node) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "appliance", "drain", "--if-running"],
        env={**running.env, "PID_FILE": "nobody.pid"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "nothing to drain" in result.stdout


def test_another_programs_process_is_left_alone(tmp_path: Path, running: Node) -> None:
    """After a power cut the pid file may name anybody; SIGUSR1 would end most."""
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "serve"]) as another,
    ):
        for stranger in (other, another):
            (tmp_path / "stale.pid").write_text(f"{stranger.pid}\n")
            result = subprocess.run(
                [sys.executable, "-m", "appliance", "drain"],
                env={**running.env, "PID_FILE": str(tmp_path / "stale.pid")},
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
            )
            assert "no service runs" in result.stderr
            assert stranger.poll() is None
            stranger.kill()


def test_sigterm_lets_what_runs_finish_and_exits_0(own_node: Node, engine: FakeHandle) -> None:
    running, waiting = one_running_one_waiting(own_node, engine)
    own_node.terminate()
    assert without_pings(waiting.events())[-1].data["error"] == "not_ready"
    assert names_of(without_pings(running.events())) == ["token"] * 10 + ["done"]
    assert own_node.wait_for_exit() == 0
    assert not (own_node.folder / "api_keys.db.pid").exists()


def test_after_sigterm_it_answers_that_it_drains(own_node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    running = own_node.generate()
    own_node.wait_until_busy(running=1)
    own_node.terminate()
    wait_until(lambda: own_node.ready().status == 503, "it drains")
    assert own_node.generate().json()["error"] == "not_ready"
    running.leave()


def test_after_sigterm_it_does_not_resume(own_node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=10)
    running = own_node.generate(max_tokens=15)
    own_node.wait_until_busy(running=1)
    own_node.terminate()
    wait_until(lambda: own_node.ready().status == 503, "it drains")
    os.kill(own_node.worker_pid(), signal.SIGUSR2)
    own_node.health()  # the worker has had its turn
    assert own_node.generate().json()["error"] == "not_ready"
    assert running.next("done")


@pytest.mark.parametrize("fault", ["hang_first", "hang"])
def test_sigterm_ends_an_endless_generation_with_an_error_event(own_node: Node, engine: FakeHandle, fault: str) -> None:
    engine.turn(fault=fault, after=1, faults=1)
    idle = own_node.generate(stream=False, headers={"X-API-Key": "nobody's"})  # keeps its connection
    assert idle.status == 401
    running = own_node.generate()
    own_node.wait_until_busy(running=1)
    began = time.monotonic()
    own_node.terminate()
    last = list(running.events())[-1]
    assert (last.name, last.data["error"], running.is_whole) == ("error", "not_ready", True)
    assert own_node.wait_for_exit() == 0
    assert time.monotonic() - began < 3 + 5  # DRAIN_S, after which the master would kill the worker at + 5
    wait_until(lambda: engine.seen()["running"] == 0, "the engine was told to stop")


@pytest.mark.parametrize("ping_s", [0.2, 60])
def test_sigterm_ends_a_load_that_a_request_waits_for(engine: FakeHandle, tmp_path: Path, ping_s: float) -> None:
    settings = {**SETTINGS, "DRAIN_S": 2, "SSE_PING_S": ping_s}
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **settings) as own_node:
        engine.turn(loaded=False, load_s=30)
        own_node.wait_until_unloaded()
        running = own_node.generate()
        own_node.wait_until_busy(running=1)
        own_node.terminate()
        told = list(running.events())[-1].data if ping_s < 1 else running.json()
        assert told["error"] == "not_ready"
        assert own_node.wait_for_exit() == 0


def test_a_second_sigterm_does_not_wait(own_node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    events = own_node.generate().events()
    assert next(events).name == "ping"
    own_node.terminate()
    wait_until(lambda: own_node.ready().status == 503, "it drains")
    own_node.terminate()
    assert own_node.wait_for_exit() == 0
    assert "error" not in names_of(list(events))  # nobody waited for DRAIN_S to tell it


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_ctrl_c_and_sigquit_do_not_wait(own_node: Node, engine: FakeHandle, signum: signal.Signals) -> None:
    engine.turn(fault="hang_first", faults=1)
    events = own_node.generate().events()
    assert next(events).name == "ping"
    own_node.process.send_signal(signum)
    assert own_node.wait_for_exit() == 0
    assert "error" not in names_of(list(events))
    wait_until(lambda: engine.seen()["running"] == 0, "the engine was told to stop")


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH])
def test_other_signals_change_nothing(node: Node, engine: FakeHandle, signum: signal.Signals) -> None:
    engine.turn(tokens_per_s=10)
    worker = node.worker_pid()
    exchange = node.generate(max_tokens=5)
    node.wait_until_busy(running=1)
    node.process.send_signal(signum)
    assert names_of(without_pings(exchange.events())) == ["token"] * 5 + ["done"]
    assert (node.worker_pid(), node.ready().status) == (worker, 200)


def test_sighup_says_that_it_changes_nothing(node: Node) -> None:
    node.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP changes nothing" in node.log, "it is said")


def test_sigterm_to_every_process_ends_as_one_to_the_master(own_node: Node, engine: FakeHandle) -> None:
    """As systemd stops a unit whose KillMode is not set."""
    engine.turn(tokens_per_s=10)
    exchange = own_node.generate(max_tokens=5)
    own_node.wait_until_busy(running=1)
    for pid in (own_node.worker_pid(), own_node.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert names_of(without_pings(exchange.events())) == ["token"] * 5 + ["done"]
    assert own_node.wait_for_exit() == 0
    assert own_node.log.count("Draining") == 1
    (key,) = json.loads(own_node.command("keys", "list", "--json").stdout)
    assert key["last_used_at"] is not None


def test_sigterm_while_the_worker_is_being_made_is_not_lost(engine: FakeHandle, tmp_path: Path) -> None:
    node = Node(tmp_path, {"OLLAMA_PORT": engine.port, "DRAIN_S": 2 * DEADLINE_S})
    try:
        wait_until((tmp_path / "api_keys.db.pid").exists, "the master has begun")
        node.terminate()
        assert node.wait_for_exit() == 0
    finally:
        node.stop()


def asked_on_and_on(node: Node, ended: threading.Event) -> list[str]:
    """What a client got that connects anew for each request, until the service has ended."""
    seen = []
    while not ended.is_set():
        try:
            with socket.create_connection(("127.0.0.1", node.port), timeout=DEADLINE_S) as client:
                client.sendall(b"GET /ready HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
                seen.append(client.recv(12).decode() or "closed without an answer")
        except ConnectionRefusedError:
            seen.append("refused")
        except OSError as error:
            seen.append(str(error))
    return seen


def test_a_stop_answers_or_refuses_every_connection_and_resets_none(own_node: Node) -> None:
    ended = threading.Event()
    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(asked_on_and_on, own_node, ended) for _ in range(4)]
        own_node.terminate()
        status = own_node.wait_for_exit()
        ended.set()
    assert status == 0
    assert {outcome for client in clients for outcome in client.result()} <= {"HTTP/1.1 200", "HTTP/1.1 503", "refused"}


def test_after_a_worker_that_was_stopped_alone_the_next_one_takes_connections(own_node: Node) -> None:
    os.kill(own_node.worker_pid(), signal.SIGTERM)
    wait_until(lambda: own_node.log.count("Listening on") == 2, "another worker")
    own_node.wait_until_ready()


def test_drain_with_another_services_port_tells_nobody(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(node.env, "PORT", str(free_port()))
    result = node.command("drain")
    assert result.returncode == 1
    assert "does not answer on port" in result.stderr
    assert node.ready().status == 200


def test_refusals_do_not_fill_the_log(node: Node) -> None:
    assert node.command("drain").returncode == 0
    assert node.generate(headers={"X-Request-ID": "refused-while-draining"}).status == 503
    assert node.command("resume").returncode == 0
    wait_until(lambda: node.ready().status == 200, "it takes generations again")
    assert "refused-while-draining" not in node.log
