"""What cannot work is refused with a sentence, before anything on a fresh machine changes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import port_taken
from runs import Run, host_vars, state_of, vaulted

from tests.hosts import fleet
from tests.hosts.fleet import Node

SECRET = "Yh3vD9sQ-never-to-be-seen"  # noqa: S105  of nothing
PROFILE = {
    "format": 1,
    "env": {"N_CTX": 1024},
    "measured": {},
    "provenance": {"run": "r1", "at": "2026-01-31T12:00:00Z"},
}


@pytest.fixture(scope="module")
def fresh(one: Node) -> set[str]:
    """The machine as it came."""
    return state_of(one)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Path]:
    """Keys that are none, in a vault; returns the file of its password."""
    keys = [{"owner": "alice", "key": f"pk_{SECRET}"}]
    with vaulted(tmp_path, {"vault_pepper": SECRET, "vault_keys": keys}) as password:
        yield password


def refused(node: Node, *arguments: str) -> str:
    return Run("site.yml", f"--limit={node.name},localhost", *arguments).fail()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("node_base_memory_min_mib=9999999", "MiB of memory; node_base_memory_min_mib asks for 9999999"),
        ("node_base_disk_model_mib=99999999", "MiB free; 100000"),
        ("ollama_version=0.99.0", "64 hex digits. The release has it: set the hex in front of"),
        ("model_name=smollm2/:135m", "model_name is 'smollm2/:135m': it has to look like qwen2.5:3b"),
        ("model_digest=c0ffee", "model_digest is 'c0ffee': it has to be empty or 64 hex digits"),
        (
            "appliance_n_ctx=7",
            "appliance_n_ctx, N_CTX: '7' is not allowed; it must be a whole number from 128 to 131072",
        ),
    ],
)
def test_a_setting_that_cannot_work(one: Node, fresh: set[str], setting: str, sentence: str) -> None:
    assert sentence in refused(one, "-e", setting, *(["-e", "ollama_checksums={}"] if "0.99.0" in setting else []))
    assert state_of(one) == fresh


def test_a_model_before_there_is_an_ollama(one: Node, fresh: set[str]) -> None:
    assert "and its model comes through Ollama. Run ansible/site.yml without --tags" in refused(one, "--tags=model")
    assert state_of(one) == fresh


@pytest.mark.parametrize("port", [8000, 11434])
def test_a_port_that_another_program_has(one: Node, fresh: set[str], port: int) -> None:
    with port_taken(one, port):
        said = refused(one)
    assert "python3 (p" in said
    assert str(port) in said
    assert state_of(one) == fresh


def test_a_system_that_is_not_supported(one: Node, fresh: set[str]) -> None:
    one.sh(
        "sed 's/13/11/; s/trixie/bullseye/' /usr/lib/os-release > /run/old && mount --bind /run/old /usr/lib/os-release"
    )
    try:
        assert "it runs Debian GNU/Linux 11 (bullseye); a node needs Debian 12 (bookworm) or" in refused(one)
    finally:
        one.sh("umount /usr/lib/os-release")
    assert state_of(one) == fresh


@pytest.mark.parametrize(
    ("profile", "sentences"),
    [
        (PROFILE | {"format": 2}, ["tuned_profile.format is 2; allowed is 1"]),
        (
            PROFILE | {"env": {"N_CTX": 7, "N_TURBO": 1}},
            [
                "tuned_profile.env has N_TURBO, which is unknown",
                "tuned_profile.env.N_CTX is 7; allowed is a whole number",
            ],
        ),
    ],
)
def test_a_tuned_profile_that_makes_no_sense(
    one: Node, fresh: set[str], profile: dict[str, object], sentences: list[str]
) -> None:
    file = host_vars(one) / "tuned.yml"
    file.write_text(json.dumps({"tuned_profile": profile}))
    said = refused(one)
    file.unlink()
    assert [sentence in said for sentence in sentences] == [True] * len(sentences)
    assert f"host_vars/{one.name}/tuned.yml" in said
    assert state_of(one) == fresh


def test_a_tuned_profile_that_is_no_yaml(one: Node, fresh: set[str]) -> None:
    file = host_vars(one) / "tuned.yml"
    file.write_text("tuned_profile: {format: 1,\n")
    said = refused(one)
    file.unlink()
    assert f"host_vars/{one.name}/tuned.yml" in said
    assert "YAML" in said
    assert state_of(one) == fresh


def test_an_inventory_without_nodes(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("nodes:\n  hosts: {}\n")
    command = [*fleet.playbook("faults", "site.yml")[:1], f"--inventory={tmp_path}", "ansible/site.yml"]
    done = subprocess.run(command, cwd=fleet.PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "The inventory has no nodes. Write your machines' addresses" in " ".join(done.stdout.split()).replace(
        "''", "'"
    )


def test_a_limit_that_names_nobody() -> None:
    assert "--limit" in Run("site.yml", "--limit=faults9").fail()


def test_a_wrong_vault_password(one: Node, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong\n")
    said = refused(one, f"--vault-password-file={tmp_path / 'wrong'}")
    assert "Decryption failed (no vault secrets were found that could decrypt)" in said
    assert SECRET not in said


def test_keys_that_are_none_are_refused_without_showing_them(one: Node, vault: Path, fresh: set[str]) -> None:
    said = refused(one, f"--vault-password-file={vault}", "-vvv", "--diff")
    assert "vault_keys, entry 1 ('alice'): key has not the form pk_<12 hex digits>_<43 characters>" in said
    assert SECRET not in said
    assert state_of(one) == fresh


def test_an_ollama_that_somebody_installed(other: Node) -> None:
    before = state_of(other)
    said = refused(other)
    assert "An Ollama that this fleet did not install is there: /etc/systemd/system/ollama.service" in said
    assert "set ollama_adopt to true" in said
    assert state_of(other) == before
