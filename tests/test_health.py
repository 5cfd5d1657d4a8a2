"""/health, /live and /ready say what is true at the moment of asking."""

from __future__ import annotations

import http.client
import os
import signal
from pathlib import Path

import pytest
from harness import Node, names_of, wait_until

from appliance import __version__, release_of
from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "MAX_QUEUE_SIZE": 4, "ENGINE_CONNECT_TIMEOUT_S": 1}


def wait_until_degraded(node: Node) -> None:
    wait_until(lambda: node.health()["status"] == "degraded", "/health is degraded")


def test_health_has_the_fields_of_the_contract(node: Node) -> None:
    assert node.health() == {
        "status": "healthy",
        "model_loaded": True,
        "model_path": "qwen2.5:3b",
        "queue_size": 0,
        "active_requests": 0,
        "max_concurrent": 2,
        "version": __version__,
        "release": None,
    }


def test_a_release_is_the_folder_that_a_deploy_laid_even_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "releases" / "0.1.0-0123abcd" / "venv").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/0.1.0-0123abcd")
    assert release_of(tmp_path / "current" / "venv") is None
    (tmp_path / "current" / "RELEASE.json").write_text("{}")
    assert release_of(tmp_path / "current" / "venv") == "0.1.0-0123abcd"


def test_health_counts_who_runs_and_who_waits(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first")
    for _ in range(5):
        node.generate()
    node.wait_until_busy(running=2, waiting=3)


def test_live_and_ready_need_no_key(node: Node) -> None:
    assert (node.get("/live").status, node.get("/live").body) == (200, {"status": "alive"})
    assert (node.ready().status, node.ready().body) == (200, {"status": "ready"})


def test_an_engine_that_stops_and_comes_back_needs_no_restart(node: Node, engine: FakeHandle) -> None:
    worker = node.worker_pid()
    engine.go_down()
    wait_until_degraded(node)
    ready = node.ready()
    assert ready.status == 503
    assert str(engine.port) in ready.body["reason"]
    assert int(ready.headers["retry-after"]) >= 1
    assert str(engine.port) in node.health()["detail"]
    assert node.get("/health").status == 200
    engine.come_up()
    wait_until(lambda: node.health()["status"] == "healthy", "/health is healthy again")
    node.wait_until_ready()
    assert node.worker_pid() == worker


def test_an_engine_that_hangs_is_degraded_and_live_still_answers(node: Node, engine: FakeHandle) -> None:
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        wait_until_degraded(node)
        assert node.get("/live").status == 200
        assert node.ready().status == 503
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    wait_until(lambda: node.health()["status"] == "healthy", "/health is healthy again")


def test_an_engine_that_restarted_empty_is_loaded_again_before_ready(node: Node, engine: FakeHandle) -> None:
    node.answer(max_tokens=1)
    engine.turn(loaded=False, load_s=0.5)
    node.wait_until_unloaded()
    assert node.ready().status == 503
    node.wait_until_ready()
    seen = engine.seen()
    assert seen["loads"] == 1
    assert names_of(node.answer(max_tokens=1)) == ["token", "done"]
    assert engine.seen()["loads"] == 1


def test_health_stays_quick_while_the_engine_is_busy(node: Node, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=50)
    streams = [node.generate(max_tokens=2048) for _ in range(2)]
    for stream in streams:
        stream.next("token")
    assert node.health()["active_requests"] == 2
    assert node.get("/live").status == 200


def test_the_engine_is_asked_less_often_than_health_is(node: Node, engine: FakeHandle) -> None:
    before = engine.seen()["connections"]
    for _ in range(50):
        node.health()
    assert engine.seen()["connections"] - before < 25  # its answer is believed for a second or two


@pytest.mark.parametrize("path", ["/health", "/live", "/ready", "/metrics"])
def test_post_is_not_allowed_there(node: Node, path: str) -> None:
    exchange = node.open(
        f"POST {path} HTTP/1.1\r\nHost: node\r\nX-API-Key: {node.key}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert exchange.status == 405
    assert "GET" in exchange.headers["allow"]


@pytest.mark.parametrize("path", ["/health", "/live", "/ready"])
def test_head_answers_as_get_does_without_a_body(node: Node, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=10)
    connection.request("HEAD", path)
    response = connection.getresponse()
    assert response.status == node.get(path).status
    assert int(response.headers["content-length"]) > 0
    assert response.read() == b""
    connection.close()
