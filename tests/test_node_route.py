"""GET /node tells who measures what this node is, without ever failing or costing others anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import falcon
import falcon.testing
import gevent
import pytest
from harness import PEPPER, Node

from appliance import __version__, machine
from appliance import node as node_module
from appliance.config import Config
from appliance.engine import Engine
from appliance.machine import Throttling
from appliance.node import BELIEVED_S, WATCH_FOR_S, ThrottleWatch
from appliance.protocol import LoadOptions
from bench.fake.handle import FakeHandle

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "N_CTX": 1024}
DIGEST = "357c53fb659c5076de1d65ccb0b397446227b71a42be9d1603d46168015c9e4b"


def ask(running: Node) -> dict[str, Any]:
    answer = running.get("/node", X_API_Key=running.key)
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    return body


@pytest.mark.tier2
def test_it_needs_a_key(node: Node) -> None:
    assert node.get("/node").status == 401


@pytest.mark.tier2
def test_it_tells_engine_and_model_as_the_engine_does(node: Node, engine: FakeHandle) -> None:
    node.answer(max_tokens=1)
    found = ask(node)
    assert found["engine"] == {"version": engine.turn()["version"], "num_parallel": 2, "problem": None}
    assert found["model"] == {
        "name": "qwen2.5:3b",
        "digest": DIGEST,
        "size_bytes": 1929912432,
        "quantization": "Q4_K_M",
        "parameters": "3.1B",
        "family": "qwen2",
        "trained_context": 32768,
        "is_loaded": True,
        "loaded_context": 1024,
    }


@pytest.mark.tier2
def test_it_tells_the_settings_in_force_and_no_secret(node: Node) -> None:
    found = ask(node)
    assert (found["settings"]["N_CTX"], found["settings"]["MAX_CONCURRENT_REQUESTS"]) == (1024, 2)
    assert "API_KEY_PEPPER" not in found["settings"]
    assert PEPPER not in str(found)
    assert found["appliance"]["version"] == __version__


@pytest.mark.tier2
def test_it_tells_this_machine(node: Node) -> None:
    found = ask(node)
    here = machine.read(node.folder)
    assert found["board"]["cores"] == here.board.cores
    assert found["boot_id"] == here.boot_id
    assert found["storage"]["path"] == str(node.folder)
    assert found["uptime_s"] > 0


@pytest.mark.tier2
def test_it_answers_while_a_generation_runs_and_the_engine_is_silent(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first")
    node.generate()
    node.wait_until_busy(running=1)
    assert ask(node)["model"]["name"] == "qwen2.5:3b"


class Silent:
    """An engine that nobody runs, with the questions it was asked."""

    def __init__(self) -> None:
        self.engine = Engine(9, "qwen2.5:3b", LoadOptions(512, 4, 128), "30m")  # port 9 refuses
        self.reads = 0
        self.now = 0.0

    def read(self) -> machine.Machine:
        self.reads += 1
        return machine.read(Path("/"))

    def client(self, tmp_path: Path, read: Callable[[], machine.Machine] | None = None) -> falcon.testing.TestClient:
        config = Config(api_keys_db=str(tmp_path / "keys.db"))
        app = falcon.App()
        app.add_route("/node", node_module.Node(config, self.engine, read=read or self.read, clock=lambda: self.now))
        return falcon.testing.TestClient(app)


def test_an_engine_that_is_away_makes_nulls_and_says_why(tmp_path: Path) -> None:
    found = Silent().client(tmp_path).simulate_get("/node").json
    assert found["engine"]["version"] is None
    assert "127.0.0.1:9" in found["engine"]["problem"]
    assert (found["model"]["digest"], found["model"]["is_loaded"]) == (None, False)
    assert found["board"]["cores"] > 0


def test_an_answer_is_believed_for_a_second(tmp_path: Path) -> None:
    silent = Silent()
    client = silent.client(tmp_path)
    for _ in range(3):
        client.simulate_get("/node")
    assert silent.reads == 1
    silent.now += BELIEVED_S
    client.simulate_get("/node")
    assert silent.reads == 2


def test_all_who_ask_at_once_share_one_look(tmp_path: Path) -> None:
    silent = Silent()
    client = silent.client(tmp_path)
    asking = [gevent.spawn(client.simulate_get, "/node") for _ in range(20)]
    assert [each.get().status_code for each in asking] == [200] * 20
    assert silent.reads == 1


def test_a_look_that_fails_holds_nobody_up(tmp_path: Path) -> None:
    silent = Silent()

    def read() -> machine.Machine:
        if silent.reads == 0:
            silent.reads += 1
            raise RuntimeError("a bug")
        return silent.read()

    client = silent.client(tmp_path, read)
    assert client.simulate_get("/node").status_code == 500
    assert client.simulate_get("/node").status_code == 200


def bits(*now: str) -> Throttling:
    return Throttling(bits="0x0", now=list(now), since_boot=None, source="kernel")


def test_throttling_between_two_questions_is_counted() -> None:
    seen = iter([bits(), bits("throttled"), bits("throttled", "undervoltage"), bits()])
    watch = ThrottleWatch(lambda: next(seen))
    for _ in range(4):
        watch.count()
    assert (watch.looks, watch.times) == (4, {"throttled": 2, "undervoltage": 1})


def test_a_machine_without_throttle_bits_counts_nothing() -> None:
    watch = ThrottleWatch(lambda: None)
    watch.count()
    assert (watch.looks, watch.times) == (0, {})


def test_it_looks_as_long_as_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(node_module.gevent, "sleep", lambda s: setattr(clock, "now", clock.now + s))
    watch = ThrottleWatch(bits, lambda: clock.now)
    watch.want()
    first = watch._greenlet
    assert first is not None
    first.join()
    assert (clock.now, watch.looks) == (WATCH_FOR_S, 1 + WATCH_FOR_S / node_module.WATCH_EVERY_S)
    watch.want()
    assert watch._greenlet is not first
    watch._greenlet.join()
