"""The role keys: the vaulted keys of the inventory reach a node as digests, and leave it with the inventory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import roles
from ansible.errors import AnsibleFilterError
from ansible.plugins.loader import filter_loader

from appliance import fleetkeys
from appliance.key import digest, pepper_check
from appliance.keys import KeyStore
from appliance.pepper import obtain

PEPPER = "the pepper of the inventory"
SECRET = "S" * 42 + "_"

roles._loader()
filter_loader.add_directory(str(roles.ROOT / "ansible" / "filter_plugins"))
fleet_keys = filter_loader.get("fleet_keys").j2_function
fleet_key_problems = filter_loader.get("fleet_key_problems").j2_function


def entry(number: int, owner: str = "alice", **fields: Any) -> dict[str, Any]:
    return {"owner": owner, "key": f"pk_{number:012x}_{SECRET}", **fields}


# ---------------------------------------------------------------------------------------------------- on the controller


@pytest.mark.parametrize("pepper", [PEPPER, f"  {PEPPER}\n", "pfeffer mit Ümlaut", "\u00a0sixteen bytes ok\u00a0"])
def test_filter_and_appliance_digest_alike(pepper: str, tmp_path: Path) -> None:
    document = fleet_keys([entry(1)], pepper)
    secret = obtain(pepper, None, tmp_path / "none.db")
    assert document["keys"][0]["digest"] == digest(secret, SECRET).hex()
    assert document["pepper_check"] == pepper_check(secret).hex()


def test_the_appliance_takes_what_the_filter_makes() -> None:
    document = fleet_keys([entry(1), entry(2, "Zoë", expires_at="2027-01-31")], PEPPER)
    assert [key.owner for key in fleetkeys.parse(json.dumps(document).encode()).keys] == ["alice", "Zoë"]
    assert fleetkeys.parse(json.dumps(fleet_keys([], "")).encode()).keys == []
    assert SECRET not in json.dumps(document)


@pytest.mark.parametrize(
    ("given", "until"),
    [
        ("2027-01-31", "2027-02-01T00:00:00+00:00"),
        (date(2027, 1, 31), "2027-02-01T00:00:00+00:00"),
        ("2027-01-31T18:00:00Z", "2027-01-31T18:00:00+00:00"),
        ("2027-01-31T18:00:00+02:00", "2027-01-31T16:00:00+00:00"),
        (datetime(2027, 1, 31, 18), "2027-01-31T18:00:00+00:00"),
    ],
)
def test_a_key_works_through_its_last_day_or_until_a_time(given: Any, until: str) -> None:
    (key,) = fleet_keys([entry(1, expires_at=given)], PEPPER)["keys"]
    assert datetime.fromtimestamp(key["expires_at"], UTC).isoformat() == until


@pytest.mark.parametrize(
    ("keys", "pepper", "sentence"),
    [
        (
            [entry(1)],
            "",
            "vault_keys has keys and vault_pepper is missing: .* `openssl rand -hex 32` makes one; put it",
        ),
        ([entry(1)], 1234567890123456, "vault_pepper is a number; expected a text in quotes"),
        ([], "too short", "vault_pepper has 9 bytes; allowed are 16 to 4096"),
        ({}, PEPPER, "vault_keys is a mapping; expected a list of entries"),
        (SECRET, PEPPER, "vault_keys is a text; expected a list of entries"),
        (None, PEPPER, "vault_keys is nothing; expected a list"),
        ([entry(1), SECRET], PEPPER, "entry 2: it is a text; expected owner and key"),
        ([{"owner": "alice"}], PEPPER, r"entry 1 \('alice'\): key is missing; `appliance keys generate"),
        ([{"key": f"pk_{1:012x}_{SECRET}"}], PEPPER, "entry 1: owner is missing"),
        ([{"owner": "a", "key": SECRET}], PEPPER, r"entry 1 \('a'\): key has not the form pk_<12 hex digits>_<43"),
        ([entry(1), entry(1, "bob")], PEPPER, r"entry 2 \('bob'\): it has the key of entry 1, or one with the same id"),
        ([entry(1, 7)], PEPPER, "entry 1: owner must be 1 to 100 printable characters"),
        (
            [entry(1, f"pk_{1:012x}_{SECRET}", x=1)],
            PEPPER,
            "entry 1: no such field 'x'; allowed are owner, key, expires",
        ),
        (
            [entry(1, expires_at="soon")],
            PEPPER,
            'expires_at must be a day such as "2027-01-31", its last one, or a time',
        ),
        ([entry(1, expires_at=20270131)], PEPPER, "expires_at must be a day"),
        ([entry(1, expires_at="9999-12-31")], PEPPER, "expires_at must be a day"),
    ],
)
def test_a_wrong_entry_is_named_and_never_shown(keys: Any, pepper: Any, sentence: str) -> None:
    problems = fleet_key_problems(keys, pepper)
    assert re.search(sentence, "\n".join(problems)), problems
    assert SECRET not in str(problems)
    assert str(pepper) == "" or str(pepper) not in str(problems)
    with pytest.raises(AnsibleFilterError):
        fleet_keys(keys, pepper)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    assert len(fleet_key_problems([{}, {"owner": "bob", "key": "pk_"}], "")) == 4


# ----------------------------------------------------------------------------------------------- as ansible runs it


class Play:
    """Plays the role against this machine, with the appliance of this checkout as the node's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.db = folder / "api_keys.db"
        self.command = folder / "pi-llm"
        self.pepper = folder / "pepper"
        self.pepper.write_text(PEPPER)
        self.pepper.chmod(0o600)
        self.command.write_text(
            f"#!/bin/sh\ncd {folder} && API_KEYS_DB={self.db} API_KEY_PEPPER_FILE={self.pepper} "
            f'exec {sys.executable} -m appliance "$@"\n'
        )
        self.command.chmod(0o755)
        (folder / "play.yml").write_text(
            "- hosts: all\n  gather_facts: false\n  tasks:\n"
            "    - import_role: {name: keys, tasks_from: '{{ entry | default(\"main\") }}'}\n"
        )

    def __call__(self, keys: list[dict[str, Any]], *options: str, pepper: str = PEPPER, **more: Any) -> str:
        """What ansible-playbook prints."""
        given = {"keys_fleet": keys, "keys_pepper": pepper, "keys__command": str(self.command), **more}
        (self.folder / "vars.json").write_text(json.dumps(given))
        done = subprocess.run(
            [
                *[sys.executable, "-m", "ansible", "playbook", "-i", "node,", "-c", "local", "-vvv"],
                *["-e", f"@{self.folder}/vars.json", "-e", f"ansible_python_interpreter={sys.executable}"],
                *options,
                str(self.folder / "play.yml"),
            ],
            env=os.environ | {"ANSIBLE_CONFIG": str(roles.ROOT / "ansible.cfg")},
            cwd=roles.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        told = done.stdout + done.stderr
        for key in keys:
            assert key["key"][16:] not in told, "a secret was shown"
        for made in fleet_keys(keys, PEPPER)["keys"]:
            assert made["digest"] not in told, "a digest was shown"
        assert pepper == "" or pepper not in told
        return told

    def active(self) -> set[str]:
        store = KeyStore(self.db, PEPPER.encode())
        owners = {key.owner for key in store.list() if key.state(0) == "active"}
        store.close()
        return owners


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


def changed(told: str) -> int:
    match = re.search(r"changed=(\d+).*failed=0", told)
    assert match is not None, told[-4000:]
    return int(match[1])


def test_keys_come_and_go_with_the_inventory_and_a_second_run_changes_nothing(play: Play) -> None:
    both = [entry(1), entry(2, "bob")]
    checked = play(both, "--check", "--diff")
    assert changed(checked) == 1
    assert f"+ key {1:012x} of alice\n+ key {2:012x} of bob\n" in checked
    assert not play.db.exists()
    assert changed(play(both)) == 1
    assert play.active() == {"alice", "bob"}
    assert changed(play(both)) == 0
    revoked = play([entry(2, "bob's laptop")], "--diff")
    assert f"~ key {2:012x} of bob's laptop\n- key {1:012x} of alice\n" in revoked
    assert play.active() == {"bob's laptop"}


def test_keys_without_a_pepper_are_refused_before_the_node_is_asked(play: Play) -> None:
    told = play([entry(1)], pepper="")
    assert "vault_keys has keys and vault_pepper is missing" in told
    assert "failed=1" in told
    assert not play.db.exists()


def test_a_pepper_under_which_the_nodes_own_keys_are_lost_is_refused_in_preflight(play: Play) -> None:
    store = KeyStore(play.db, PEPPER.encode())
    store.issue("own")
    store.close()
    told = play([entry(1)], "--check", pepper="another pepper, as long")
    assert "1 keys made on this node (of own) were made under another pepper than the inventory's vault_pepper" in told
    assert "failed=1" in told


def test_a_vault_that_was_not_read_revokes_nothing_and_uninstalling_does(play: Play) -> None:
    play([entry(1)])
    told = play([], pepper="")
    assert "was the vault with vault_keys left out?" in told
    assert play.active() == {"alice"}
    assert changed(play([], pepper="", entry="uninstall", keys_keep=True)) == 0
    assert changed(play([], pepper="", entry="uninstall")) == 1
    assert play.active() == set()


def test_a_node_without_an_appliance_gets_none_and_a_broken_one_stops_no_preflight(play: Play) -> None:
    play.command.write_text("#!/bin/sh\necho 'it is broken' >&2\nexit 127\n")
    warned = play([entry(1)], entry="preflight")
    assert "could not be looked at: it is broken" in warned
    assert changed(warned) == 0
    play.command.unlink()
    told = play([entry(1)])
    assert "The appliance is not on this node" in told
    assert "run site.yml first" in told
    assert changed(play([], pepper="", entry="uninstall")) == 0
