"""Nodes that serve, and what happens to them: each time a clear error or a healing, and no secret in either.

The tests follow on each other: a run that heals is the next test's, or the same one's second run.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import secrets
import subprocess
from pathlib import Path

from conftest import port_taken
from runs import Run, cut, state_of, vaulted

from tests.hosts import podman
from tests.hosts.fleet import Node

PEPPER = secrets.token_hex(32)
SETTING = ("-e", "appliance_max_tokens=48")
JOURNAL = "journalctl --no-pager --output=verbose"
CREATE = "while key=$(pi-llm keys create --owner carol); do echo $key; done"


def fleet_key(owner: str) -> dict[str, str]:
    """An entry of vault_keys."""
    return {"owner": owner, "key": f"pk_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"}


def works(node: Node, key: str) -> bool:
    """Whether a node takes a key."""
    with contextlib.closing(http.client.HTTPConnection(node.address, 8000, timeout=30)) as connection:
        connection.request("GET", "/node", headers={"X-API-Key": key})
        return connection.getresponse().status == http.HTTPStatus.OK


def max_tokens(node: Node) -> str:
    return node.sh("grep ^MAX_TOKENS= /etc/pi-llm/appliance.env").partition("=")[2]


def test_ollamas_port_is_taken_while_it_is_down(other: Node) -> None:
    other.sh("systemctl disable --now --quiet ollama")
    with port_taken(other, 11434):
        before = state_of(other)
        assert "Port 11434 is taken by python3" in Run("site.yml", f"--limit={other.name},localhost").fail()
        assert state_of(other) == before


def test_ollama_is_down_and_its_program_is_damaged(other: Node) -> None:
    other.sh("truncate --size=100 /opt/ollama/current/bin/ollama")
    Run("site.yml", f"--limit={other.name},localhost").succeed()
    assert other.sh("systemctl is-enabled ollama") == "enabled"
    assert other.get("/ready")[0] == http.HTTPStatus.OK


def test_power_is_cut_while_a_roll_restarts_a_node(one: Node, other: Node) -> None:
    before = max_tokens(other)
    run = Run("profile.yml", *SETTING)
    run.reach("appliance : Restart the appliance")
    cut(one, run)
    assert max_tokens(other) == before != "48"  # the roll stopped


def test_a_node_goes_off_in_the_middle_of_a_roll(one: Node, other: Node) -> None:
    """The first node, whose restart was cut before, is healed by this run."""
    run = Run("profile.yml", *SETTING)
    run.reach("appliance : Restart the appliance")
    podman.off(other.name)
    assert f"fatal: [{other.name}]: UNREACHABLE!" in run.end()
    assert one.get("/ready")[0] == http.HTTPStatus.OK
    podman.on(other.name)


def test_the_next_roll_heals_all(one: Node, other: Node) -> None:
    Run("profile.yml", *SETTING).succeed()
    assert [max_tokens(node) for node in (one, other)] == ["48", "48"]
    assert [node.get("/ready")[0] for node in (one, other)] == [http.HTTPStatus.OK] * 2


def test_power_is_cut_while_keys_are_made(one: Node) -> None:
    """Keys whose creation was answered are there, and the service takes them."""
    words = podman.ssh_command(one.name, ["sudo", "bash", "-c", f"'{CREATE}'"])
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as making:
        assert making.stdout is not None
        made = [re.search(r"pk_\w{12}_[\w-]{43}", making.stdout.readline()) for _ in range(3)]
        podman.off(one.name)
        made += [re.search(r"pk_\w{12}_[\w-]{43}", line) for line in making.stdout]
    podman.on(one.name)
    one.sh("systemctl start pi-llm")
    assert [works(one, key[0]) for key in made if key] == [True] * len(made)


def test_a_pepper_that_would_spoil_keys_is_refused(one: Node, tmp_path: Path) -> None:
    before = state_of(one)
    with vaulted(tmp_path, {"vault_pepper": PEPPER}) as password:
        said = Run("site.yml", f"--limit={one.name},localhost", f"--vault-password-file={password}").fail()
    assert "the pepper of the vault is not the one of the node, under which keys were made on it" in said
    assert "Put the one in /etc/pi-llm/pepper into the vault, or revoke those keys first" in said
    assert state_of(one) == before


def test_nothing_secret_is_seen_and_keys_survive_a_power_cut(other: Node, tmp_path: Path) -> None:
    limit, alice, bob = f"--limit={other.name},localhost", fleet_key("alice"), fleet_key("bob")
    with vaulted(tmp_path, {"vault_pepper": PEPPER, "vault_keys": [alice]}) as password:
        said = Run("site.yml", limit, f"--vault-password-file={password}", "-vvv", "--diff").succeed()
    said += other.sh(JOURNAL)  # the cut takes some of it
    with vaulted(tmp_path, {"vault_pepper": PEPPER, "vault_keys": [alice, bob]}) as password:
        run = Run("keys.yml", limit, f"--vault-password-file={password}", "-vvv", "--diff")
        run.reach("keys : Make the fleet's keys those of the inventory")
        cut(other, run)
        said += run.said + Run("keys.yml", limit, f"--vault-password-file={password}", "-vvv", "--diff").succeed()
    other.sh("systemctl start pi-llm")
    assert [works(other, entry["key"]) for entry in (alice, bob)] == [True, True]
    said += other.sh(JOURNAL)
    assert "ansible-keys_sync" in said
    secret = [PEPPER, *(entry["key"][16:] for entry in (alice, bob))]
    assert [text in said for text in secret] == [False] * 3
