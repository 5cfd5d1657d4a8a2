"""`appliance engine --store` is as Ollama to its clients, with the real model."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
import requests
from embedded_process import EngineProcess, running_engine

from appliance.embedded import weights
from tests.hosts import registry
from tests.hosts.registry import FIRST

pytestmark = pytest.mark.tier2

PATIENCE_S = 60  # only ever used up by a failing test
MANIFEST = registry.manifest_path(FIRST)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    registry.write(registry.members(weights.ensure()), folder)
    return folder


@pytest.fixture
def engine(source: Path, tmp_path: Path) -> Iterator[EngineProcess]:
    options = ("--store", f"{tmp_path}/models", "--registry", str(source), "--says-version", "1.2.3")
    with running_engine(*options, "--num-ctx", "256") as engine:
        yield engine


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[ollama.Client]:
    with ollama.Client(host=engine.url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


def test_the_official_client_pulls_lists_generates_and_deletes(
    client: ollama.Client, source: Path, engine: EngineProcess
) -> None:
    assert client.list().models == []
    assert client.pull(FIRST).status == "success"
    (listed,) = client.list().models
    assert listed.digest == registry.digest({MANIFEST: source / MANIFEST}, FIRST)
    assert client.generate(FIRST, "Hi", options={"num_predict": 3}).eval_count == 3
    assert client.ps().models[0].digest == listed.digest
    assert client.show(FIRST).details == client.ps().models[0].details
    assert client.delete(FIRST).status == "success"
    assert client.list().models == []
    with pytest.raises(ollama.ResponseError, match="model 'smollm2:135m' not found"):
        client.delete(FIRST)
    assert requests.get(f"{engine.url}/api/version", timeout=PATIENCE_S).json() == {"version": "1.2.3"}


def test_a_pull_of_what_is_not_there_answers_ollamas_bytes(engine: EngineProcess) -> None:
    answer = requests.post(f"{engine.url}/api/pull", json={"model": "nope"}, timeout=PATIENCE_S)
    expected = b'{"status":"pulling manifest"}\n{"error":"pull model manifest: file does not exist"}\n'
    assert (answer.status_code, answer.content) == (200, expected)
    answer = requests.post(f"{engine.url}/api/pull", json={"model": "nope", "stream": False}, timeout=PATIENCE_S)
    assert answer.status_code == 500


@pytest.mark.parametrize(
    ("body", "status", "answer"),
    [
        ({}, 400, "model is required"),
        ({"model": "a b"}, 400, 'name "a b" is invalid'),
        ({"model": "nope"}, 404, "model 'nope' not found"),
    ],
)
def test_a_wrong_deletion_is_answered_as_ollama_does(
    engine: EngineProcess, body: dict[str, Any], status: int, answer: str
) -> None:
    response = requests.delete(f"{engine.url}/api/delete", json=body, timeout=PATIENCE_S)
    assert (response.status_code, response.json()) == (status, {"error": answer})


def test_a_client_that_leaves_a_slow_pull_ends_it(source: Path, tmp_path: Path) -> None:
    options = ("--store", f"{tmp_path}/models", "--registry", str(source), "--registry-rate", "50000000")
    body = json.dumps({"model": FIRST}).encode()
    with running_engine(*options) as engine:
        with socket.create_connection(("127.0.0.1", engine.port), timeout=PATIENCE_S) as connection:
            connection.sendall(b"POST /api/pull HTTP/1.1\r\nHost: localhost\r\n")
            connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            seen = b""
            while b'"completed"' not in seen:
                seen += connection.recv(65536)
        with ollama.Client(host=engine.url, timeout=PATIENCE_S, trust_env=False) as client:
            steps = client.pull(FIRST, stream=True)  # begins when the first has ended
            first = next(step for step in steps if step.completed)
            assert first.completed > json.loads(b"{" + seen.split(b"{")[-1].splitlines()[0])["completed"]
            assert list(steps)[-1].status == "success"
