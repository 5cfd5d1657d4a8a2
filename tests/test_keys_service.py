"""Keys on the running service: issued over HTTP, judged, revoked from the command line, and not lost by kill -9."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PEPPER, Answer, Exchange, Node, post, running_node, serve_in_vain, wait_until

from appliance.key import digest, joined, new_parts, pepper_check
from appliance.keys import KeyStore
from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"CLIENT_TIMEOUT_S": 1}


def ask_for_a_key(node: Node, owner: str = "alice", **headers: str) -> Exchange:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps({"owner": owner}).encode()
    return node.open(post("/keys/generate", {"Content-Type": "application/json", **given}, body))


def with_key(node: Node, key: str) -> Answer:
    """Ask for something that needs a key and no engine."""
    return node.get("/metrics", X_API_Key=key)


def test_the_node_itself_gets_a_key_that_works_at_once(node: Node) -> None:
    answer = ask_for_a_key(node)
    assert answer.status == 200
    assert set(answer.json()) == {"api_key", "owner", "created_at"}
    assert with_key(node, answer.json()["api_key"]).status == 200
    assert answer.json()["api_key"] not in node.log


def test_who_comes_through_a_proxy_gets_none(node: Node) -> None:
    answer = ask_for_a_key(node, X_Forwarded_For="127.0.0.1")
    assert (answer.status, answer.json()["error"]) == (403, "issuance_refused")


def test_a_request_that_does_not_come_to_its_end_is_408(node: Node) -> None:
    head = b"POST /keys/generate HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    answer = node.open(head + b"{")
    assert answer.status == 408
    assert "1 s" in answer.json()["detail"]


def test_a_key_of_the_command_line_works_at_once_and_stops_within_a_second_of_its_end(node: Node) -> None:
    key = node.command("keys", "create", "--owner", "bob").stdout.strip()
    assert with_key(node, key).status == 200
    assert node.command("keys", "revoke", key[3:15]).returncode == 0
    time.sleep(1)  # the promise itself
    answer = with_key(node, key)
    assert (answer.status, answer.body["reason"]) == (401, "revoked")


def test_the_fleets_keys_come_and_go_under_a_running_service(node: Node) -> None:
    key_id, secret = new_parts()
    check = pepper_check(PEPPER.encode()).hex()
    keys = [{"id": key_id, "digest": digest(PEPPER.encode(), secret).hex(), "owner": "the fleet's"}]
    assert node.command("keys", "sync", given=json.dumps({"keys": keys, "pepper_check": check})).returncode == 0
    assert with_key(node, joined(key_id, secret)).status == 200
    revoked = node.command("keys", "sync", "--revoke-all", given='{"keys": []}')
    assert json.loads(revoked.stdout)["revoked"] == [key_id]
    time.sleep(1)  # the promise itself
    assert with_key(node, joined(key_id, secret)).body["reason"] == "revoked"


def test_an_expired_key_stops_by_itself(node: Node) -> None:
    key = node.command("keys", "create", "--owner", "bob", "--expires", "1s").stdout.strip()
    wait_until(lambda: with_key(node, key).status == 401, "the key expires")
    assert with_key(node, key).body["reason"] == "expired"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"X-API-Key:", "missing"),
        (b"X-API-Key: nonsense", "malformed"),
        (b"X-API-Key: pk_0123456789ab_" + b"s" * 43, "unknown"),
        (b"X-API-Key: pk_" + b"1" * 10_240, "malformed"),
        (b"Authorization: Bearer pk_" + b"1" * 10_240, "malformed"),
        (b"X-API-Key: schl\xc3\xbcssel", "malformed"),
        (b"X-API-Key: \xff\xfe\x80", "malformed"),
        (b"Authorization: Basic YTpi", "missing"),
    ],
)
def test_bad_keys_are_401_with_a_sentence(node: Node, header: bytes, reason: str) -> None:
    body = b'{"prompt": "hi"}'
    exchange = node.open(
        b"POST /generate HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n%b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (header, len(body), body)
    )
    assert (exchange.status, exchange.json()["reason"]) == (401, reason)
    assert exchange.headers["www-authenticate"].startswith("Bearer")


@pytest.fixture
def started(fake_engine: FakeHandle, tmp_path: Path) -> Iterator[Node]:
    """A service of its own, which the test may kill."""
    node = Node(tmp_path, {"OLLAMA_PORT": fake_engine.port})
    try:
        node.wait_until_ready()
        yield node
    finally:
        node.stop()


@pytest.mark.parametrize("answered", [1, 4, 7])
def test_kill_9_of_the_service_loses_no_key_that_was_answered(
    fake_engine: FakeHandle, started: Node, answered: int
) -> None:
    asked = [ask_for_a_key(started, f"owner {number}") for number in range(8)]
    keys = [exchange.json()["api_key"] for exchange in asked[:answered]]
    worker = started.worker_pid()
    started.process.kill()
    os.kill(worker, signal.SIGKILL)
    started.wait_for_exit()
    with running_node(started.folder, OLLAMA_PORT=fake_engine.port) as again:
        assert [with_key(again, key).status for key in keys] == [200] * answered


def test_a_wrong_pepper_stops_the_start_and_says_why(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "api_keys.db", b"the pepper of these keys")
    store.issue("alice")
    store.close()
    ended = serve_in_vain(tmp_path, API_KEY_PEPPER="an0ther pepper, as long")
    assert ended.returncode == 2
    assert "were made under another pepper" in ended.stderr
    assert "an0ther" not in ended.stderr


def test_a_stopped_service_leaves_the_keys_in_one_file(fake_engine: FakeHandle, tmp_path: Path) -> None:
    with running_node(tmp_path, OLLAMA_PORT=fake_engine.port) as node:
        node.wait_until_ready()
        assert node.stop() == 0
    assert (tmp_path / "api_keys.db").exists()
    assert not (tmp_path / "api_keys.db-wal").exists()
