"""A slot is given back on every path, also on those that need the application in process to be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import falcon
import falcon.testing
import pytest
from harness import PEPPER, Node, wait_until

from appliance.admission import Admission
from appliance.app import create_app
from appliance.config import Config
from appliance.engine import Engine, LoadOptions
from appliance.keyring import KeyRing
from appliance.keys import KeyStore
from appliance.residency import Residency
from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2


class InProcess:
    """The application over a real engine's socket, without gunicorn."""

    def __init__(self, folder: Path, engine: FakeHandle) -> None:
        store = KeyStore(folder / "api_keys.db", PEPPER.encode())
        self.key = store.issue("tests").api_key
        self.keys = KeyRing(store)
        self.admission = Admission(slots=1, queue_limit=1)
        upstream = Engine(engine.port, "qwen2.5:3b", LoadOptions(512, 4, 128), "30m")
        residency = Residency(upstream, keep_alive_s=1800)
        residency.start().join()
        self.app = create_app(Config(), self.keys, self.admission, upstream, residency)

    def generate(self, start_response: Callable[..., Any] | None = None, **fields: Any) -> Any:
        """Call the application as a server does; returns the body's iterable."""
        body = falcon.media.JSONHandler().serialize({"prompt": "Why?", **fields}, "application/json")
        headers = {"X-API-Key": self.key, "Content-Type": "application/json"}
        environ = falcon.testing.create_environ("/generate", method="POST", headers=headers, body=body)
        return self.app(environ, start_response or (lambda status, headers, exc_info=None: lambda data: None))


@pytest.fixture
def inside(engine: FakeHandle, tmp_path: Path) -> Iterator[InProcess]:
    process = InProcess(tmp_path, engine)
    yield process
    process.keys.close()


class FailsAfterwards:
    """A middleware with a bug."""

    def process_response(self, req: Any, resp: Any, resource: object, req_succeeded: bool) -> None:
        raise RuntimeError("a bug of a middleware")


class FailsWithAnHttpError:
    def process_response(self, req: Any, resp: Any, resource: object, req_succeeded: bool) -> None:
        raise falcon.HTTPInternalServerError


class SwapsTheStream:
    """A middleware that answers something else."""

    def process_response(self, req: Any, resp: Any, resource: object, req_succeeded: bool) -> None:
        resp.stream = None
        resp.text = "something else"


@pytest.mark.parametrize("middleware", [FailsAfterwards(), FailsWithAnHttpError(), SwapsTheStream()])
def test_after_an_error_of_a_middleware(inside: InProcess, engine: FakeHandle, middleware: object) -> None:
    engine.turn(fault="hang", after=1)
    inside.app.add_middleware(middleware)
    body = inside.generate()
    assert inside.admission.running == 0
    assert b"event:" not in b"".join(body)
    wait_until(lambda: engine.seen()["running"] == 0, "the engine was told to stop")


def test_after_a_body_that_was_never_read(inside: InProcess, engine: FakeHandle) -> None:
    engine.turn(fault="hang", after=1)
    body = inside.generate()
    assert inside.admission.running == 1
    body.close()
    assert inside.admission.running == 0


def test_after_a_body_of_which_a_part_was_read(inside: InProcess, engine: FakeHandle) -> None:
    engine.turn(tokens_per_s=20)
    body = inside.generate(max_tokens=100)
    assert next(iter(body)).startswith(b"event: token")
    assert next(body)
    body.close()
    assert inside.admission.running == 0
    wait_until(lambda: engine.seen()["running"] == 0, "the engine was told to stop")


def test_after_a_body_that_was_read_to_its_end(inside: InProcess) -> None:
    assert b"event: done" in b"".join(inside.generate(max_tokens=2))
    assert inside.admission.running == 0


def test_after_an_answer_that_was_collected(inside: InProcess) -> None:
    assert b"completion_tokens" in b"".join(inside.generate(max_tokens=2, stream=False))
    assert inside.admission.running == 0


def test_when_the_servers_start_response_fails(inside: InProcess, engine: FakeHandle) -> None:
    """gunicorn refuses a header it does not like, after the stream has been made."""

    def refuse(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        raise ValueError("no such header")

    engine.turn(fault="hang", after=1)
    with pytest.raises(ValueError, match="no such header"):
        inside.generate(refuse)
    assert inside.admission.running == 0


@pytest.mark.parametrize("stream", [True, False])
def test_after_a_bug_in_the_middle(inside: InProcess, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr("appliance.generation.Generations._done", lambda *_: 1 / 0)
    answer = b"".join(inside.generate(max_tokens=2, stream=stream))
    assert b'"error":"internal_error"' in answer.replace(b'": "', b'":"')
    assert (b"event: error" in answer) == stream
    assert inside.admission.running == 0


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "OPTIONS"])
def test_another_method_takes_none(node: Node, engine: FakeHandle, method: str) -> None:
    before = engine.seen()["generations"]
    body = b'{"prompt": "Why?"}'
    head = f"{method} /generate HTTP/1.1\r\nHost: node\r\nX-API-Key: {node.key}\r\nContent-Type: application/json\r\n"
    exchange = node.open(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert exchange.status == (200 if method == "OPTIONS" else 405)
    assert "POST" in exchange.headers["allow"]
    assert node.health()["active_requests"] == 0
    assert engine.seen()["generations"] == before
