"""The module `node_state`: what of a node is not as it should be, in sentences."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from appliance import machine

SOURCE = Path(__file__).parent.parent / "ansible" / "library" / "node_state.py"
spec = importlib.util.spec_from_file_location("node_state", SOURCE)
assert spec is not None
assert spec.loader is not None
node_state = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node_state)

WANTED = {
    "appliance_host": "0.0.0.0",
    "appliance_port": 8000,
    "ollama_port": 11434,
    "ollama_version": "0.34.4",
    "model_name": "qwen2.5:3b",
    "model_digest": "",
}
RUNS = {"active": "active", "enabled": "enabled", "restarts": 0}


def state(**changes: Any) -> dict[str, Any]:
    as_wanted: dict[str, Any] = {
        "units": {"ollama": RUNS, "pi-llm": RUNS},
        "ollama_version": "0.34.4",
        "digest": "357c53fb659c5076",
        "ready": {"http_status": 200},
        "listeners": {11434: ["127.0.0.1"], 8000: ["0.0.0.0"]},
    }
    return as_wanted | changes


def problems(wanted: dict[str, Any] = WANTED, **changes: Any) -> list[str]:
    found: list[str] = node_state.problems(state(**changes), wanted)
    return found


def test_a_node_as_wanted_has_no_problems() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"units": {"ollama": RUNS, "pi-llm": {**RUNS, "active": "failed"}}}, "pi-llm.service is failed"),
        ({"units": {"ollama": {**RUNS, "enabled": "disabled"}, "pi-llm": RUNS}}, "does not start at boot"),
        ({"ollama_version": "0.33.0"}, "Ollama is 0.33.0, and 0.34.4 is wanted"),
        ({"digest": None}, "the model qwen2.5:3b is not there"),
        ({"listeners": {11434: ["0.0.0.0"]}}, "port 11434 of Ollama is open to the network on 0.0.0.0"),
        ({"ready": None}, "the appliance does not answer on port 8000"),
        ({"ready": {"http_status": 503, "reason": "draining"}}, "not ready: draining"),
    ],
)
def test_each_fault_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    (problem,) = problems(**changes)
    assert words in problem


def test_a_silent_ollama_is_told_once() -> None:
    assert problems(ollama_version=None, digest=None) == ["Ollama does not answer on 127.0.0.1:11434"]


def test_another_digest_than_the_pinned_one_is_told() -> None:
    (problem,) = problems(WANTED | {"model_digest": "aaaaaaaaaaaaaaaa"})
    assert "357c53fb659c, and aaaaaaaaaaaa is wanted" in problem


def test_it_sees_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert node_state.listeners({port}) == {port: ["127.0.0.1"]}


def test_it_sees_who_listens_on_version_6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        assert node_state.listeners({port}) == {port: ["::1"]}


def test_a_model_without_a_tag_is_latest() -> None:
    assert node_state.digest_of([{"name": "tiny:latest", "digest": "ab"}], "tiny") == "ab"
    assert node_state.digest_of([{"name": "tiny:1b", "digest": "ab"}], "registry.ollama.ai/library/tiny:1b") == "ab"


DEVICE_TREE = {"sys/firmware/devicetree/base/model": b"Raspberry Pi 5 Model B Rev 1.0\0"}
SMBIOS = {"sys/class/dmi/id/sys_vendor": b"LENOVO\n", "sys/class/dmi/id/product_name": b"20XW\n"}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (DEVICE_TREE, "Raspberry Pi 5 Model B Rev 1.0"),
        (SMBIOS, "LENOVO 20XW"),
        (DEVICE_TREE | SMBIOS, "Raspberry Pi 5 Model B Rev 1.0"),
        ({}, None),
    ],
)
def test_the_board_has_the_name_that_the_appliance_tells(
    tmp_path: Path, files: dict[str, bytes], name: str | None
) -> None:
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert node_state.board(tmp_path) == machine.board(tmp_path).name == name
