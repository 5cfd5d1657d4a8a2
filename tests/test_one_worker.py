"""What refuses a start, and says why in one line: more than one worker, a taken port, a second service."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from harness import Node, free_port, running_node, serve_in_vain

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2


@pytest.mark.parametrize(
    ("arguments", "settings", "source"),
    [
        ((), {"WEB_CONCURRENCY": "2"}, "WEB_CONCURRENCY"),
        ((), {"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY"),
        ((), {"WEB_CONCURRENCY": "many"}, "WEB_CONCURRENCY"),
        ((), {"WEB_CONCURRENCY": ""}, "WEB_CONCURRENCY"),
        (("-w", "2"), {}, "-w"),
        (("--workers", "4"), {}, "-w"),
        ((), {"GUNICORN_CMD_ARGS": "-w 2"}, "GUNICORN_CMD_ARGS"),
        ((), {"GUNICORN_CMD_ARGS": "--workers=3"}, "GUNICORN_CMD_ARGS"),
    ],
)
def test_more_than_one_worker_is_refused_with_the_reason(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], source: str
) -> None:
    result = serve_in_vain(tmp_path, *arguments, PORT=free_port(), **settings)
    assert result.returncode == 2
    assert f"appliance: {source} asks for" in result.stderr
    assert "allowed: 1. One worker by design" in result.stderr
    assert "MAX_CONCURRENT_REQUESTS" in result.stderr
    assert "Traceback" not in result.stderr


def test_one_worker_may_be_asked_for(engine: FakeHandle, tmp_path: Path) -> None:
    with running_node(tmp_path, OLLAMA_PORT=engine.port, WEB_CONCURRENCY=1, GUNICORN_CMD_ARGS="-w 1") as node:
        assert node.ready().status == 200


def test_a_taken_port_is_named_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = serve_in_vain(tmp_path, PORT=port)
    assert result.returncode == 1
    assert f"HOST=127.0.0.1 PORT={port}: Address already in use" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_named_in_one_line(tmp_path: Path, host: str) -> None:
    result = serve_in_vain(tmp_path, HOST=host, PORT=free_port())
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert f"HOST={host}" in result.stderr


def test_a_second_service_with_the_same_settings_is_refused(node: Node) -> None:
    result = serve_in_vain(node.folder, PORT=free_port())
    assert result.returncode == 1
    assert f"process {node.process.pid} already serves" in result.stderr
    assert node.ready().status == 200


@pytest.mark.parametrize(
    "stale",
    [str(os.getpid()), "1", "4194304", "nonsense", ""],
    ids=["another program", "init", "nobody", "nonsense", "empty"],
)
def test_a_pid_file_left_by_a_power_cut_does_not_stop_the_start(engine: FakeHandle, tmp_path: Path, stale: str) -> None:
    pid_file = tmp_path / "api_keys.db.pid"
    pid_file.write_text(stale)
    with running_node(tmp_path, OLLAMA_PORT=engine.port) as node:
        assert pid_file.read_text().strip() == str(node.process.pid)
    assert not pid_file.exists()


@pytest.mark.parametrize(("path", "reason"), [("no/such/folder/pid", "No such file"), (".", "Is a directory")])
def test_a_pid_file_that_cannot_be_written_is_named_in_one_line(tmp_path: Path, path: str, reason: str) -> None:
    result = serve_in_vain(tmp_path, PORT=free_port(), PID_FILE=path)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert f"PID_FILE: {path} cannot be written: {reason}" in result.stderr
