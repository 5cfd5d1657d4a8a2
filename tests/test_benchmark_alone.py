"""A benchmark has the node for itself, and whatever happens to it, the node is its users' again."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from benchmark_client import benchmark
from harness import DEADLINE_S, Exchange, Node, names_of, running_node, wait_until

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"N_CTX": 512, "N_THREADS": 3, "N_BATCH": 64, "MAX_CONCURRENT_REQUESTS": 2}
OWN = {"num_ctx": 512, "num_thread": 3, "num_batch": 64}
OTHER = {"context_sizes": [1024], "threads": [1], "runs": 1}
LEAVINGS = ["leave", "reset", "half_close"]


def begun(node: Node, engine: FakeHandle, **fields: object) -> Exchange:
    """A benchmark with events whose first run the engine has and will not end."""
    engine.turn(fault="hang", faults=1)
    exchange = benchmark(node, events=True, **{**OTHER, **fields})
    assert exchange.next("progress").data["stage"] == "warming_up"
    return exchange


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_restored(node: Node, engine: FakeHandle) -> None:
    """The slots are free, /ready is 200, and the next request of a user finds the node's own options loaded."""
    node.wait_until_idle()
    assert node.ready().status == 200
    loads = engine.seen()["loads"]
    assert names_of(node.answer(max_tokens=2))[-1] == "done"
    seen = engine.seen()
    assert {name: seen["requests"][-1]["body"]["options"][name] for name in OWN} == OWN
    assert seen["loads"] == loads


def test_it_waits_for_what_runs_and_lets_nobody_else_start(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang", faults=1)
    running = node.generate()
    running.next("token")
    waiting = benchmark(node, events=True, **OTHER)
    assert waiting.next("progress").data["stage"] == "waiting"
    assert waiting.next("ping")
    queued = node.generate(max_tokens=1)
    assert queued.next("queued"), "though a slot is free"
    assert len(engine.seen()["requests"]) == 1
    running.leave()
    assert waiting.next("result")
    assert queued.next("done")


def test_ready_says_benchmarking_and_others_wait_until_it_is_done(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=20)
    exchange = benchmark(node, events=True, **OTHER)
    exchange.next("progress")
    ready = node.ready()
    assert (ready.status, ready.body["reason"]) == (503, "benchmarking")
    assert "retry-after" in ready.headers
    assert node.get("/live").status == 200
    other = node.generate(max_tokens=1)
    assert other.next("queued").data["position"] == 1
    assert exchange.next("result")
    assert other.next("done")
    bodies = [request["body"] for request in engine.seen()["requests"]]
    assert [body["options"]["num_ctx"] for body in bodies] == [1024, 1024, 512, 512], "restored before anybody else"


def test_a_second_benchmark_is_refused(node: Node, engine: FakeHandle) -> None:
    first = begun(node, engine)
    second = benchmark(node, events=True)
    assert (second.status, second.json()["error"]) == (503, "not_ready")
    assert int(second.headers["retry-after"]) > 0
    first.leave()
    is_restored(node, engine)


@pytest.mark.parametrize("leaving", LEAVINGS)
def test_a_client_that_leaves_stops_it_and_the_nodes_own_options_come_back(
    node: Node, engine: FakeHandle, leaving: str
) -> None:
    exchange = begun(node, engine)
    getattr(exchange, leaving)()
    wait_until(lambda: engine.seen()["requests"][0]["ended"] == "client_gone", "the engine sees it")
    is_restored(node, engine)
    assert "outcome=client_gone" in node.log
    assert sum(r["body"]["options"]["num_ctx"] == 1024 for r in engine.seen()["requests"]) == 1, "no further run"


@pytest.mark.parametrize("fault", ["hang_first", "hang"])
def test_a_client_that_waits_for_json_and_leaves_stops_it_too(node: Node, engine: FakeHandle, fault: str) -> None:
    engine.turn(fault=fault, faults=1)
    exchange = benchmark(node, **OTHER)
    wait_until(lambda: len(engine.seen()["requests"]) == 1, "the first run has begun")
    exchange.leave()
    wait_until(lambda: engine.seen()["requests"][0]["ended"] == "client_gone", "the engine sees it")
    is_restored(node, engine)


def test_a_client_that_leaves_while_the_model_loads_stops_it(node: Node, engine: FakeHandle) -> None:
    exchange = begun(node, engine, context_sizes=[2048])
    exchange.leave()
    node.wait_until_idle()
    engine.turn(load_s=DEADLINE_S * 2)  # the node's own options are loaded: only another setting takes that long
    exchange = benchmark(node, events=True, **OTHER)
    exchange.next("progress")
    engine.turn(load_s=0)
    exchange.leave()
    wait_until(lambda: engine.seen()["requests"][-2]["ended"] == "client_gone", "the load is given up", deadline_s=5)
    is_restored(node, engine)


def test_a_client_that_leaves_before_its_turn_holds_nobody_up(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang", faults=1)
    running = node.generate()
    running.next("token")
    waiting = benchmark(node, events=True, **OTHER)
    waiting.next("progress")
    waiting.leave()
    assert node.generate(max_tokens=1).next("done"), "the other slot"
    assert node.ready().status == 200
    assert all(request["body"]["options"]["num_ctx"] == 512 for request in engine.seen()["requests"])
    running.leave()


def test_it_gives_up_when_the_running_requests_do_not_finish(engine: FakeHandle, tmp_path: Path) -> None:
    with running_node(tmp_path, OLLAMA_PORT=engine.port, MAX_QUEUE_WAIT_S=1) as node:
        engine.turn(fault="hang", faults=1)
        running = node.generate()
        running.next("token")
        exchange = benchmark(node)
        assert (exchange.status, exchange.json()["error"]) == (504, "wait_timeout")
        assert node.ready().status == 200
        running.leave()


@pytest.mark.parametrize(
    ("fault", "code"), [("error", "engine_failed"), ("no_done", "engine_failed"), ("reset", "engine_failed")]
)
def test_an_engine_that_fails_ends_it_with_an_error_that_names_the_setting(
    node: Node, engine: FakeHandle, fault: str, code: str
) -> None:
    engine.turn(fault=fault, faults=1)
    error = list(benchmark(node, events=True, **OTHER).events())[-1]
    assert (error.name, error.data["error"]) == ("error", code)
    assert error.data["setting"] == {"context_size": 1024, "threads": 1, "batch_size": 64}
    is_restored(node, engine)


def test_without_events_the_error_is_the_status(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="500", faults=1)
    exchange = benchmark(node, **OTHER)
    assert (exchange.status, exchange.json()["error"]) == (502, "engine_failed")
    is_restored(node, engine)


def test_an_engine_that_is_away_is_an_honest_status_with_events_too(node: Node, engine: FakeHandle) -> None:
    engine.go_down()
    wait_until(lambda: not is_listening(engine.port), "the engine refuses connections")
    exchange = benchmark(node, events=True, **OTHER)
    assert (exchange.status, exchange.json()["error"]) == (503, "engine_unreachable")
    engine.come_up()
    node.wait_until_idle()
    node.wait_until_ready()


def test_a_reload_that_fails_does_not_wedge_the_node(node: Node, engine: FakeHandle) -> None:
    exchange = begun(node, engine)
    log_length = len(node.log)
    engine.turn(fault="500", faults=0)
    exchange.leave()
    node.wait_until_idle()
    assert node.log[log_length:].count("Loading the node's own options after a benchmark failed") == 2
    engine.turn(fault="")
    node.wait_until_ready()
    assert names_of(node.answer(max_tokens=2))[-1] == "done"


def test_the_slots_are_held_until_the_nodes_own_options_are_loaded(node: Node, engine: FakeHandle) -> None:
    exchange = begun(node, engine)
    engine.turn(load_s=0.5)
    exchange.leave()
    wait_until(lambda: len(engine.seen()["requests"]) == 2, "the reload has begun")
    assert node.ready().body["reason"] == "benchmarking"
    is_restored(node, engine)


def test_draining_ends_it_and_refuses_the_next(node: Node, engine: FakeHandle) -> None:
    exchange = begun(node, engine)
    node.process.send_signal(signal.SIGUSR1)
    error = exchange.next("error").data
    assert (error["error"], "draining" in error["detail"]) == ("not_ready", True)
    assert benchmark(node).status == 503
    node.wait_until_idle()
    node.process.send_signal(signal.SIGUSR2)
    node.wait_until_ready()
    is_restored(node, engine)


def test_draining_refuses_one_that_waits(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang", faults=1)
    running = node.generate()
    running.next("token")
    waiting = benchmark(node, events=True, **OTHER)
    waiting.next("progress")
    node.process.send_signal(signal.SIGUSR1)
    assert waiting.next("error").data["error"] == "not_ready"
    running.leave()
    node.process.send_signal(signal.SIGUSR2)
    node.wait_until_ready()


def test_a_stop_ends_it_and_the_service_exits_cleanly(engine: FakeHandle, tmp_path: Path) -> None:
    with running_node(tmp_path, OLLAMA_PORT=engine.port, **SETTINGS) as node:
        exchange = begun(node, engine)
        node.terminate()
        assert exchange.next("error").data["error"] == "not_ready"
        assert node.wait_for_exit() == 0
