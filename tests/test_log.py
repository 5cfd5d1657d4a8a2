"""The log: one line a generation, one a state, and never a secret."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from harness import PEPPER, Node, running_node, wait_until

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"LOG_LEVEL": "debug"}
PROMPT = "a prompt that is nobody else's business"


def test_a_generation_is_one_line_with_what_it_took(node: Node) -> None:
    node.generate(max_tokens=3, headers={"X-Request-ID": "seen-in-the-log"}).next("done")
    wait_until(lambda: "seen-in-the-log" in node.log, "it is logged")
    (line,) = [line for line in node.log.splitlines() if "seen-in-the-log" in line]
    assert re.search(
        r"generate id=seen-in-the-log key=[0-9a-f]{12} outcome=length prompt_tokens=12 completion_tokens=3 "
        r"queue_ms=\d+ ttft_ms=\d+ tokens_per_s=[\d.]+ total_ms=\d+$",
        line,
    )


def test_a_refusal_is_logged_with_its_code(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="503", faults=1)
    node.generate(headers={"X-Request-ID": "refused-in-the-log"}).json()
    wait_until(lambda: "id=refused-in-the-log" in node.log, "it is logged")
    assert re.search("id=refused-in-the-log key=[0-9a-f]{12} outcome=engine_busy", node.log)


def test_no_secret_is_ever_in_it(node: Node, engine: FakeHandle) -> None:
    secret = node.key[-43:]
    wrong = node.key[:-4] + "AAAA"
    node.generate(prompt=PROMPT, system=PROMPT, max_tokens=1).next("done")
    node.generate(prompt=PROMPT, key=wrong).json()
    node.generate(prompt=PROMPT, headers={"X-API-Key": "", "Authorization": f"Bearer {node.key}"}, top_k=0).json()
    node.generate(prompt=PROMPT, headers={"Authorization": f"Bearer {wrong}"}).json()
    engine.turn(fault="hang_first")
    node.generate(prompt=PROMPT).leave()
    for text in (secret, wrong[-43:], PEPPER, PROMPT):
        assert text not in node.log


@pytest.mark.parametrize("broken", ["X-API-Key {key}", "X-API-Key: {key}\r\n\tfolded: {key}", "X API Key: {key}"])
def test_no_secret_of_a_broken_header_is_in_it(node: Node, broken: str) -> None:
    request = f"GET /live HTTP/1.1\r\nHost: node\r\n{broken.format(key=node.key)}\r\n\r\n"
    assert node.open(request.encode()).status == 400
    assert node.key[-43:] not in node.log


def test_a_request_without_its_first_line_is_no_line_of_it(node: Node) -> None:
    assert node.open(f"X-API-Key: {node.key}\r\n\r\n".encode()).status == 400
    assert "Invalid" not in node.log


def test_no_secret_is_in_an_error_either(node: Node) -> None:
    wrong = node.key[:-4] + "AAAA"
    answer = json.dumps(node.generate(key=wrong).json())
    assert wrong[-43:] not in answer
    assert node.key[-43:] not in answer


def test_odd_bytes_of_a_client_stay_out_of_it(node: Node) -> None:
    assert node.generate(headers={"X-Request-ID": "\x1b[31mred"}).status == 400
    assert "\x1b" not in node.log


def test_the_start_is_told_in_a_few_lines(engine: FakeHandle, tmp_path: Path) -> None:
    with running_node(tmp_path, OLLAMA_PORT=engine.port) as own:
        lines = own.log.splitlines()
        assert f"Listening on http://127.0.0.1:{own.port}" in own.log
        assert "Ready" in own.log
        assert len(lines) < 8


def test_the_journal_adds_its_own_time(engine: FakeHandle, tmp_path: Path) -> None:
    with running_node(tmp_path, OLLAMA_PORT=engine.port, JOURNAL_STREAM="8:12345") as own:
        assert own.log.startswith("Listening on")


def test_nothing_is_logged_of_health_checks(node: Node) -> None:
    before = node.log
    for path in ("/health", "/live", "/ready"):
        node.get(path)
    assert node.log == before
