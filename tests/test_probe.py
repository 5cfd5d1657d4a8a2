"""`appliance probe`: what it proves, what it waits for, and how it comes by a key."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import PEPPER, Node, free_port, running_node

from appliance import __version__
from appliance.keys import KeyStore
from appliance.probekey import obtain
from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 1, "MAX_QUEUE_SIZE": 0}


def proof(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_it_proves_an_answer_by_its_figures(node: Node) -> None:
    found = proof(node.command("probe", "--tokens", "3", "--json"))
    assert (
        found.items()
        >= {
            "version": __version__,
            "release": None,
            "ready": True,
            "model": "qwen2.5:3b",
            "completion_tokens": 3,
        }.items()
    )
    assert found["text"]
    assert found["ttft_ms"] > 0
    assert found["tokens_per_s"] > 0


def test_for_people_it_says_so_in_a_line(node: Node) -> None:
    assert "qwen2.5:3b answered 8 tokens, the first after" in node.command("probe").stdout


def test_it_tells_what_it_waits_for_once_a_change(engine: FakeHandle, tmp_path: Path) -> None:
    engine.turn(loaded=False, load_s=1.5)
    with running_node(tmp_path, OLLAMA_PORT=engine.port, is_awaited=False) as node:
        result = node.command("probe", "--json")
        assert proof(result)["waited_s"] > 0
    said = result.stderr.splitlines()
    assert "waiting: loading qwen2.5:3b" in said
    assert len(said) == len(set(said))


def test_without_a_service_it_fails_with_a_sentence_and_makes_nothing(node: Node, tmp_path: Path) -> None:
    port = free_port()
    node.env, kept = {**node.env, "PORT": str(port)}, node.env
    result = node.command("probe", "--wait", "0", "--json")
    node.env = kept
    assert result.returncode == 1
    assert f"Error: not within 0 s: nothing answers on port {port} (" in result.stderr
    assert json.loads(result.stdout)["ready"] is False
    assert json.loads(result.stdout)["detail"] in result.stderr


def test_another_release_than_the_one_expected_is_no_proof(node: Node) -> None:
    result = node.command("probe", "--wait", "0", "--release", "0.2.0-0123abcd")
    assert result.returncode == 1
    assert f"appliance {__version__} answers, not 0.2.0-0123abcd; was the service restarted?" in result.stderr


def test_a_full_node_is_waited_for(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    node.generate()
    node.wait_until_busy(running=1)
    result = node.command("probe", "--wait", "0")
    assert result.returncode == 1
    assert "not within 0 s: " in result.stderr
    node.close_connections()
    assert proof(node.command("probe", "--json"))["ready"]


@pytest.mark.parametrize("fault", ["500", "error", "no_done"])
def test_a_generation_that_fails_is_told(node: Node, engine: FakeHandle, fault: str) -> None:
    engine.turn(fault=fault, after=1)
    result = node.command("probe", "--wait", "0", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["detail"] in result.stderr


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = KeyStore(tmp_path / "api_keys.db", PEPPER.encode())
    yield store
    store.close()


def probes(store: KeyStore) -> list[str]:
    return [key.state(0) for key in store.list() if key.owner == "probe"]


def test_its_key_is_made_once_and_is_private(store: KeyStore, tmp_path: Path) -> None:
    assert obtain(store) == obtain(store)
    assert probes(store) == ["active"]
    assert stat.S_IMODE((tmp_path / "probe.key").stat().st_mode) == 0o600
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".")) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "revoked", "another's"])
def test_its_key_is_healed_and_earlier_ones_are_revoked(store: KeyStore, tmp_path: Path, damage: str) -> None:
    first, file = obtain(store), tmp_path / "probe.key"
    if damage == "missing":
        file.unlink()
    elif damage == "revoked":
        store.revoke(first[3:15])
    else:
        file.write_text({"empty": "", "torn": first[:30], "another's": store.issue("alice").api_key}[damage])
    second = obtain(store)
    assert second != first
    assert sorted(probes(store)) == ["active", "revoked"]
    assert obtain(store) == second


def test_a_key_of_an_older_pepper_is_made_again(store: KeyStore) -> None:
    first = obtain(store)
    later = KeyStore(store.path, b"another pepper, as long")
    assert obtain(later) not in ("", first)
    assert probes(later) == ["revoked", "active"]
    later.close()


def test_somebodys_own_key_of_the_same_name_is_left_alone(store: KeyStore) -> None:
    store.issue("probe")
    obtain(store)
    assert probes(store) == ["active", "active"]
