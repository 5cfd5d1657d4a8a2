"""What a node gets from the inventory, by ansible's own precedence: default < tuned < a group's pin < a host's pin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import roles
import yaml
from test_tuned_profile import PROFILE

PLAYBOOK = [
    {
        "hosts": "nodes",
        "gather_facts": False,
        "roles": ["appliance"],
        "tasks": [],
    }
]


def write(path: Path, **variables: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(variables))


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """A copy of the project's inventory in which each node goes one step further."""
    folder = tmp_path / "inventory"
    shutil.copytree(roles.INVENTORY, folder)
    hosts = {"default": None, "tuned": None, "group_pin": None, "host_pin": None}
    long = {"hosts": {"group_pin": None, "host_pin": None}}
    write(folder / "hosts.yml", nodes={"hosts": hosts}, long_prompts=long)
    for node in ("tuned", "group_pin", "host_pin"):
        write(folder / "host_vars" / node / "tuned.yml", tuned_profile=PROFILE)
    write(folder / "group_vars" / "long_prompts.yml", appliance_n_ctx=2048)
    write(folder / "host_vars" / "host_pin" / "mine.yml", appliance_n_ctx=4096)
    return folder


@pytest.mark.parametrize(
    ("node", "n_ctx"), [("default", 512), ("tuned", 1024), ("group_pin", 2048), ("host_pin", 4096)]
)
def test_a_pin_beats_the_tuned_profile_which_beats_the_default(inventory, node, n_ctx):
    assert roles.evaluate("appliance", "appliance_n_ctx", inventory, node) == n_ctx


def test_ansible_itself_says_the_same_inside_the_role(inventory, tmp_path):
    role = tmp_path / "roles" / "appliance"
    shutil.copytree(roles.ROLES / "appliance" / "defaults", role / "defaults")
    (role / "tasks").mkdir()
    (role / "tasks" / "main.yml").write_text(
        yaml.safe_dump([{"name": "Show", "ansible.builtin.debug": {"msg": "{{ appliance_n_ctx }}"}}])
    )
    (tmp_path / "play.yml").write_text(yaml.safe_dump(PLAYBOOK))
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.oneline", "ANSIBLE_NOCOLOR": "1"}
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory / "hosts.yml")]
    done = subprocess.run(
        [*command, str(tmp_path / "play.yml")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    said = dict(line.split(" | SUCCESS => ") for line in done.stdout.splitlines() if " | SUCCESS => " in line)
    assert {node: int(json.loads(text)["msg"]) for node, text in said.items()} == {
        "default": 512,
        "tuned": 1024,
        "group_pin": 2048,
        "host_pin": 4096,
    }, done.stdout + done.stderr


def test_a_group_of_nodes_pins_too(inventory):
    write(inventory / "group_vars" / "nodes" / "mine.yml", appliance_n_ctx=256)
    assert roles.evaluate("appliance", "appliance_n_ctx", inventory, "tuned") == 256


def test_a_profile_leaves_alone_what_it_does_not_name(inventory):
    assert roles.evaluate("ollama", "ollama_kv_cache_type", inventory, "tuned") == "f16"


@pytest.mark.parametrize("profile", ["nonsense", None, {}, {"env": None}, {"env": "N_CTX=1"}])
def test_a_profile_of_nonsense_hides_no_default(inventory, profile):
    """So that it is the check that speaks, and not a template that fails somewhere else."""
    write(inventory / "host_vars" / "tuned" / "tuned.yml", tuned_profile=profile)
    assert roles.evaluate("appliance", "appliance_n_ctx", inventory, "tuned") == 512


def test_the_engine_has_as_many_slots_as_the_appliance(inventory):
    write(inventory / "host_vars" / "tuned" / "mine.yml", appliance_max_concurrent_requests=7)
    assert roles.evaluate("ollama", "ollama_num_parallel", inventory, "tuned") == 7


@pytest.mark.parametrize(
    ("role", "mine", "theirs", "value"),
    [
        ("appliance", "appliance_ollama_port", "ollama_port", 12345),
        ("appliance", "appliance_ollama_model", "model_name", "qwen2.5:1.5b"),
        ("appliance", "appliance_pepper", "vault_pepper", "0123456789abcdef"),
        ("ollama", "ollama_keep_alive", "appliance_ollama_keep_alive", "-1"),
        ("keys", "keys_fleet", "vault_keys", [{"owner": "alice", "key": "pk_0123456789ab_x"}]),
    ],
)
def test_what_roles_share_is_said_once(inventory, role, mine, theirs, value):
    write(inventory / "host_vars" / "default" / "mine.yml", **{theirs: value})
    assert roles.evaluate(role, mine, inventory, "default") == value


def test_without_a_vault_there_is_no_pepper_and_no_key(inventory):
    assert roles.evaluate("appliance", "appliance_pepper", inventory, "default") == ""
    assert roles.evaluate("keys", "keys_fleet", inventory, "default") == []


def test_the_example_fleet_is_three_pis():
    nodes = yaml.safe_load((roles.INVENTORY / "hosts.yml").read_text())["nodes"]
    assert list(nodes["hosts"]) == ["pi1", "pi2", "pi3"]


@pytest.mark.parametrize("path", sorted((roles.INVENTORY / "group_vars" / "nodes").glob("*.yml")), ids=lambda p: p.name)
def test_what_people_may_uncomment_is_a_variable_of_the_role(path):
    text = path.read_text()
    names = [line[2:].partition(":")[0] for line in text.splitlines() if line.startswith(f"# {path.stem}_")]
    assert names
    assert set(names) <= set(roles.options(path.stem))
