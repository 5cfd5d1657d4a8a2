"""The fleet is what Ansible says it is: every plugin, vault and variable counts, and no secret is ever shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.inventory import fleet
from bench.inventory.fleet import Fleet, FleetError, Vault
from bench.inventory.tuned_file import NAME

KEY = "pk_0123456789ab_Secret"
PASSWORD = "the vault's own"


class Ansible:
    """Answers as ansible-inventory does, and remembers what it was asked."""

    def __init__(self, hosts: dict[str, dict[str, Any]], groups: dict[str, Any] | None = None) -> None:
        groups = {"nodes": {"hosts": list(hosts)}} if groups is None else groups
        self.told = json.dumps({"_meta": {"hostvars": hosts}, **groups})
        self.rendered: dict[str, Any] = {}
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], vault: Vault) -> str:
        self.commands.append(command)
        if command[0] == "ansible-inventory":
            return self.told
        return "localhost | SUCCESS => " + json.dumps({"msg": self.rendered})

    def load(self, *sources: str, **options: Any) -> Fleet:
        return fleet.load(sources or ("hosts.yml",), run=self, **options)


def keys(*entries: Any) -> list[dict[str, Any]]:
    return [dict(zip(("key", "owner", "expires_at"), entry, strict=False)) for entry in entries]


def urls(found: Fleet) -> dict[str, str]:
    return {target.name: target.url for target in found.targets}


# --- which nodes, where


def test_a_node_is_where_ansible_host_and_the_appliances_port_say() -> None:
    hosts: dict[str, dict[str, Any]] = {
        "pi1": {"ansible_host": "pi1.local", "appliance_port": 8001},
        "pi2": {},
        "pi3": {"ansible_host": "fd00::3"},
        "pi4": {"ansible_host": "10.0.0.4", "bench_url": "https://gate.example/pi4/"},
    }
    assert urls(Ansible(hosts).load(key=KEY)) == {
        "pi1": "http://pi1.local:8001",
        "pi2": "http://pi2:8000",
        "pi3": "http://[fd00::3]:8000",
        "pi4": "https://gate.example/pi4",
    }


def test_only_the_group_nodes_counts_with_the_groups_below_it_each_node_once() -> None:
    groups = {
        "nodes": {"children": ["attic", "cellar"]},
        "attic": {"hosts": ["pi2", "pi1"]},
        "cellar": {"hosts": ["pi1"], "children": ["attic"]},
        "other": {"hosts": ["nas"]},
    }
    assert list(urls(Ansible({}, groups).load(key=KEY))) == ["pi2", "pi1"]


@pytest.mark.parametrize(
    "variables",
    [{"ansible_host": "a b"}, {"ansible_host": "a\r\nX: y"}, {"appliance_port": "many"}, {"bench_url": "ftp://x"}],
)
def test_what_is_no_address_is_the_nodes_own_problem(variables: dict[str, Any]) -> None:
    found = Ansible({"pi1": variables, "pi2": {}}).load(key=KEY)
    assert [node.name for node in found.nodes] == ["pi2"]
    assert "is no address; correct ansible_host, appliance_port or bench_url" in found.problems["pi1"]


@pytest.mark.parametrize("groups", [{}, {"nodes": {}}, {"all": {"hosts": ["nas"]}}])
def test_an_inventory_without_nodes_says_where_they_belong(groups: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match=r"hosts\.yml has no nodes.*under the group 'nodes'"):
        Ansible({}, groups).load(key=KEY)
    with pytest.raises(FleetError, match=r"no node of hosts\.yml matches 'pi9'"):
        Ansible({}, groups).load(key=KEY, limit="pi9")


def test_a_thousand_nodes_are_one_question() -> None:
    ansible = Ansible(
        {f"pi{number}": {"ansible_host": f"10.0.{number // 250}.{number % 250}"} for number in range(1000)}
    )
    assert len(ansible.load(key=KEY).nodes) == 1000
    assert len(ansible.commands) == 1


# --- which key


def test_the_key_is_the_benchs_own_or_the_first_that_is_valid() -> None:
    today = "2026-06-15"
    assert fleet.key_of(keys(("pk_a", "alice"), ("pk_b", "bench")), today) == "pk_b"
    assert fleet.key_of(keys(("pk_a", "alice", "2026-06-14"), ("pk_c", "carol", "2026-06-15")), today) == "pk_c"
    assert fleet.key_of(keys(("pk_t", "bench", "2026-06-15T08:00:00Z")), today) == "pk_t"


@pytest.mark.parametrize("entries", [None, [], "text", {}, [1], [{"owner": "x"}], keys((7, "x")), keys(("a\nb", "x"))])
def test_what_holds_no_key_gives_none(entries: Any) -> None:
    assert fleet.key_of(entries, "2026-06-15") is None


def test_a_given_key_beats_the_inventorys_and_that_may_be_in_keys_fleet() -> None:
    ansible = Ansible({"pi1": {"vault_keys": keys(("pk_v", "x"))}, "pi2": {"keys_fleet": keys(("pk_f", "x"))}})
    assert [target.key for target in ansible.load().targets] == ["pk_v", "pk_f"]
    assert {target.key for target in ansible.load(key=KEY).targets} == {KEY}


def test_a_node_without_a_key_is_told_how_to_get_one_and_the_others_go_on() -> None:
    found = Ansible({"pi1": {"keys_fleet": fleet.NO_KEYS}, "pi2": {"vault_keys": keys((KEY, "x"))}}).load()
    assert [node.name for node in found.nodes] == ["pi2"]
    assert "pi1: no API key" in found.problems["pi1"]
    assert "--key-file" in found.problems["pi1"]


def test_no_secret_is_in_what_is_shown() -> None:
    found = Ansible({"pi1": {"vault_keys": keys((KEY, "x"))}}).load()
    assert KEY not in repr(found) + str(found)
    assert PASSWORD not in repr(Vault(password=PASSWORD))


# --- what ansible-inventory leaves as it is


@pytest.mark.parametrize(
    "variables",
    [
        {"ansible_host": "{{ inventory_hostname }}.local"},
        {"vault_keys": "{{ theirs + ours }}"},
        {"vault_keys": [{"owner": "bench", "key": {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256\n6461"}}]},
    ],
)
def test_templates_and_encrypted_values_are_rendered_by_a_play_for_those_nodes_alone(variables: dict[str, Any]) -> None:
    ansible = Ansible({"pi1": variables, "pi2": {"vault_keys": keys((KEY, "x"))}})
    ansible.rendered = {
        "pi1": {**dict.fromkeys(fleet.WANTED), "ansible_host": "pi1.lan", "vault_keys": keys(("pk_r", "x"))}
    }
    found = ansible.load()
    assert [command[0] for command in ansible.commands] == ["ansible-inventory", "ansible"]
    assert [(target.url, target.key) for target in found.targets] == [
        ("http://pi1.lan:8000", "pk_r"),
        ("http://pi2:8000", KEY),
    ]


def test_the_default_inventorys_own_links_need_no_second_question() -> None:
    ansible = Ansible({"pi1": {"keys_fleet": fleet.NO_KEYS, "model_name": "{{ x }}"}})
    ansible.load(key=KEY)
    assert len(ansible.commands) == 1


def test_an_answer_that_is_none_is_an_error_without_its_text() -> None:
    ansible = Ansible({})
    ansible.told = f"{KEY} is no JSON"
    with pytest.raises(FleetError) as caught:
        ansible.load()
    assert KEY not in str(caught.value)


# --- where profiles belong


def homes(found: Fleet) -> list[Path | None]:
    return [node.inventory for node in found.nodes]


def test_a_profile_belongs_beside_the_inventory_that_has_one_or_knows_the_node(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "hosts.yml").write_text("")
    sources = (str(first / "hosts.yml"), str(second))
    ansible = Ansible({"pi1": {}})
    assert homes(ansible.load(*sources, key=KEY)) == [first]
    (second / "host_vars" / "pi1").mkdir(parents=True)
    assert homes(ansible.load(*sources, key=KEY)) == [second]
    (first / "host_vars" / "pi1").mkdir(parents=True)
    (first / "host_vars" / "pi1" / NAME).write_text("")
    assert homes(ansible.load(*sources, key=KEY)) == [first]
    (second / "host_vars" / "pi1" / NAME).write_text("")
    assert "delete one of the two" in ansible.load(*sources, key=KEY).problems["pi1"]


def test_a_list_of_hosts_has_no_place_for_profiles() -> None:
    assert homes(Ansible({"pi1": {}}).load("pi1,", key=KEY)) == [None]


# --- the real thing


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "group_vars" / "nodes").mkdir(parents=True)
    (tmp_path / "host_vars" / "pi2").mkdir(parents=True)
    (tmp_path / "hosts.yml").write_text(
        "nodes:\n  hosts:\n    pi1:\n    pi2:\n  vars: {ansible_host: '{{ inventory_hostname }}.lan'}\n"
    )
    (tmp_path / "host_vars" / "pi2" / "mine.yml").write_text("appliance_port: '{{ 8000 + 2 }}'\n")
    vault = tmp_path / "group_vars" / "nodes" / "vault.yml"
    vault.write_text(f"vault_keys: [{{owner: bench, key: {KEY}}}]\n")
    (tmp_path / "password").write_text(PASSWORD)
    command = [str(Path(sys.executable).with_name("ansible-vault")), "encrypt", str(vault)]
    subprocess.run([*command, "--vault-password-file", str(tmp_path / "password")], check=True, capture_output=True)
    return tmp_path


@pytest.mark.parametrize("how", ["a file", "asked"])
def test_a_real_inventory_with_a_vault_and_templates(inventory: Path, how: str) -> None:
    vault = Vault(password=PASSWORD) if how == "asked" else Vault(files=(inventory / "password",))
    found = fleet.load([str(inventory / "hosts.yml")], vault=vault)
    assert urls(found) == {"pi1": "http://pi1.lan:8000", "pi2": "http://pi2.lan:8002"}
    assert {target.key for target in found.targets} == {KEY}
    assert homes(found) == [inventory, inventory]
    only = fleet.load([str(inventory / "hosts.yml")], vault=vault, limit="pi2")
    assert list(urls(only)) == ["pi2"]


def test_a_vault_without_its_password_is_told_the_options(inventory: Path) -> None:
    for vault in (Vault(), Vault(password="another")):
        with pytest.raises(FleetError, match="--vault-password-file FILE or --ask-vault-pass"):
            fleet.load([str(inventory / "hosts.yml")], vault=vault)


def test_a_password_that_was_asked_for_is_in_no_argument(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        seen.append((command, options["env"]))
        return real(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    fleet.load([str(inventory / "hosts.yml")], vault=Vault(password=PASSWORD))
    assert len(seen) == 2
    assert PASSWORD not in str(seen)
    assert KEY not in str(seen)


def test_ansibles_own_log_gets_no_keys(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_LOG_PATH", str(inventory / "ansible.log"))
    fleet.load([str(inventory / "hosts.yml")], vault=Vault(password=PASSWORD))
    assert not (inventory / "ansible.log").exists()


@pytest.mark.parametrize(("text", "word"), [("nodes: [", r"bad\.yml:2"), (None, "Unable to parse .*bad.yml")])
def test_an_inventory_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, word: str) -> None:
    if text is not None:
        (tmp_path / "bad.yml").write_text(text)
    with pytest.raises(FleetError, match=f"could not read the inventory.*{word}"):
        fleet.load([str(tmp_path / "bad.yml")])


def test_without_ansible_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FleetError, match="ansible-inventory is not installed here; `make fleet`"):
        fleet.load(["hosts.yml"])


def test_without_an_inventory_it_is_ansibles_or_the_projects_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANSIBLE_INVENTORY", raising=False)
    ansible = Ansible({"pi1": {}})
    assert homes(fleet.load(run=ansible, key=KEY)) == [fleet.INVENTORY]
    monkeypatch.setenv("ANSIBLE_INVENTORY", "a.yml,b.yml")
    fleet.load(run=ansible, key=KEY)
    assert [part for part in ansible.commands[-1] if part.endswith(".yml")] == ["a.yml", "b.yml"]


def test_no_pipe_is_left_open(inventory: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fleet.load([str(inventory / "hosts.yml")], vault=Vault(password=PASSWORD), limit="pi1")
    assert len(os.listdir("/proc/self/fd")) == before
