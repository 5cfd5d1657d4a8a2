"""The fleet's keys on a node: `appliance keys sync` makes them exactly those of the inventory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance import fleetkeys
from appliance.__main__ import main
from appliance.key import digest, parse, pepper_check
from appliance.keys import KeyStore

PEPPER = "the pepper of the inventory"
OTHER_PEPPER = "another pepper, as long"
SECRET = "s" * 43

Sync = Callable[..., Result]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "api_keys.db"


@pytest.fixture
def store(db: Path) -> Any:
    store = KeyStore(db, PEPPER.encode())
    yield store
    store.close()


def entry(number: int, owner: str = "alice", pepper: str = PEPPER, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"{number:012x}",
        "digest": digest(pepper.encode(), SECRET).hex(),
        "owner": owner,
        "expires_at": None,
        **fields,
    }


def document(*keys: Any, pepper: str = PEPPER) -> str:
    return json.dumps({"keys": keys, "pepper_check": pepper_check(pepper.encode()).hex()})


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sync:
    """Run `appliance keys …` with a text for its standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("API_KEY_PEPPER", PEPPER)
    return lambda *arguments, given="": CliRunner().invoke(main, ["keys", *arguments], input=given)


@pytest.fixture
def sync(keys: Sync) -> Sync:
    return lambda *entries, options=(), pepper=PEPPER: keys("sync", *options, given=document(*entries, pepper=pepper))


def done(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    changes: dict[str, Any] = json.loads(result.stdout)
    return {name: value for name, value in changes.items() if value and name != "owners"}


def active(store: KeyStore) -> dict[str, str]:
    return {key.id: key.owner for key in store.list() if key.state(0) == "active"}


def test_it_adds_and_changes_and_revokes_until_the_file_is_as_the_list(sync: Sync, store: KeyStore) -> None:
    assert done(sync(entry(1), entry(2, "bob"))) == {"added": [f"{1:012x}", f"{2:012x}"]}
    changed = sync(entry(1, "alice's laptop"), entry(3, "carol", expires_at=9999))
    assert json.loads(changed.stdout) == {
        "added": [f"{3:012x}"],
        "changed": [f"{1:012x}"],
        "revoked": [f"{2:012x}"],
        "owners": {f"{1:012x}": "alice's laptop", f"{2:012x}": "bob", f"{3:012x}": "carol"},
    }
    assert active(store) == {f"{1:012x}": "alice's laptop", f"{3:012x}": "carol"}
    assert {key.source for key in store.list()} == {"fleet"}


def test_a_second_run_changes_nothing(sync: Sync, db: Path) -> None:
    sync(entry(1), entry(2, expires_at=9999))
    before = db.read_bytes()
    assert done(sync(entry(1), entry(2, expires_at=9999))) == {}
    assert db.read_bytes() == before


def test_a_key_that_left_the_list_and_comes_back_works_again(sync: Sync, store: KeyStore) -> None:
    sync(entry(1), entry(2))
    sync(entry(2))
    assert done(sync(entry(1), entry(2))) == {"added": [f"{1:012x}"]}
    assert active(store) == {f"{1:012x}": "alice", f"{2:012x}": "alice"}


def test_keys_made_on_the_node_are_left_alone(sync: Sync, store: KeyStore) -> None:
    own, probe = store.issue("own"), store.issue("probe", source="probe")
    sync(entry(1))
    assert done(sync(options=["--revoke-all"])) == {"revoked": [f"{1:012x}"]}
    assert active(store) == {own.id: "own", probe.id: "probe"}


def test_a_key_made_on_the_node_and_put_into_the_inventory_becomes_the_fleets(sync: Sync, store: KeyStore) -> None:
    key_id, secret = parse(store.issue("own").api_key) or ("", "")
    adopted = entry(0, id=key_id, digest=digest(PEPPER.encode(), secret).hex())
    assert done(sync(adopted, entry(1))) == {"added": [f"{1:012x}"], "changed": [key_id]}
    assert done(sync(entry(1))) == {"revoked": [key_id]}


def test_an_id_that_another_key_of_the_node_has_is_refused_whole(sync: Sync, store: KeyStore) -> None:
    own = store.issue("own")
    refused = sync(entry(1), entry(2, "bob", id=own.id))
    assert refused.exit_code == 3
    assert f"The key {own.id} of 'bob': another key, made on this node for 'own', has this id" in refused.stderr
    assert active(store) == {own.id: "own"}


def test_an_empty_list_does_not_revoke_everything_by_mistake(sync: Sync, store: KeyStore) -> None:
    assert done(sync()) == {}
    sync(entry(1))
    refused = sync()
    assert refused.exit_code == 3
    assert "was the vault with vault_keys left out? To revoke them all, run keys.yml with" in refused.stderr
    assert active(store) == {f"{1:012x}": "alice"}


def test_a_full_node_takes_the_fleets_keys(db: Path) -> None:
    store = KeyStore(db, PEPPER.encode(), key_limit=1)
    fleetkeys.sync(fleetkeys.parse(document(entry(1), entry(2)).encode()), store)
    assert store.issue("own").owner == "own"
    store.close()


def test_check_says_the_same_and_changes_nothing(sync: Sync, db: Path) -> None:
    assert done(sync(entry(1), options=["--check"])) == {"added": [f"{1:012x}"]}
    assert not db.exists()
    sync(entry(1), entry(2))
    before = db.read_bytes()
    assert done(sync(entry(1, "bob"), entry(3), options=["--check"])) == {
        "added": [f"{3:012x}"],
        "changed": [f"{1:012x}"],
        "revoked": [f"{2:012x}"],
    }
    assert db.read_bytes() == before


def test_digests_of_another_pepper_are_refused_with_the_remedy(sync: Sync, store: KeyStore) -> None:
    refused = sync(entry(1, pepper=OTHER_PEPPER), pepper=OTHER_PEPPER)
    assert refused.exit_code == 3
    assert "under another pepper than this node's" in refused.stderr
    assert "`ansible-playbook ansible/deploy.yml` gives the node vault_pepper" in refused.stderr
    assert active(store) == {}


def test_check_refuses_a_pepper_under_which_keys_of_the_node_would_be_lost(sync: Sync, store: KeyStore) -> None:
    own = store.issue("own")
    given: dict[str, Any] = {"pepper": OTHER_PEPPER, "options": ["--check"]}
    refused = sync(entry(1, pepper=OTHER_PEPPER), **given)
    assert refused.exit_code == 3
    assert "1 keys made on this node (of own) were made under another pepper" in refused.stderr
    assert "make the node's own pepper vault_pepper" in refused.stderr
    store.revoke(own.id)
    assert done(sync(entry(1, pepper=OTHER_PEPPER), **given)) == {"added": [f"{1:012x}"]}


def test_after_a_change_of_the_pepper_all_digests_are_new(
    sync: Sync, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(entry(1))
    monkeypatch.setenv("API_KEY_PEPPER", OTHER_PEPPER)
    changed = sync(entry(1, pepper=OTHER_PEPPER), pepper=OTHER_PEPPER)
    assert done(changed) == {"changed": [f"{1:012x}"]}
    assert store.list()[0].digest == digest(OTHER_PEPPER.encode(), SECRET)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "The document is not JSON"),
        ("[]", 'not an object with a list "keys"'),
        ('{"keys": {}}', 'not an object with a list "keys"'),
        ('{"keys": [], "pepper": 1}', "the document: no such field 'pepper'; known: keys, pepper_check"),
        ('{"keys": [], "pepper_check": "x"}', "the document: pepper_check must be 64 hex digits"),
        (json.dumps({"keys": [entry(1)]}), "pepper_check is missing"),
        (document("pk_" + SECRET), "entry 1: expected an object"),
        (document(entry(1), {"id": "x"}), "entry 2 (id 'x'): id must be 12 hex digits in lower case"),
        (document(entry(1), entry(1, "bob")), "entry 2 (owner 'bob'): its id 000000000001 is that of entry 1"),
        (document(entry(1, digest="AB" * 32)), "entry 1 (owner 'alice'): digest must be 64 hex digits in lower case"),
        (document(entry(1, expires_at=-1)), "entry 1 (owner 'alice'): expires_at must be a whole number from 0 to"),
        (document(entry(1, expires_at="soon")), "entry 1 (owner 'alice'): expires_at must be"),
        (document(entry(1, secret=SECRET)), "entry 1 (owner 'alice'): no such field 'secret'; known: id, digest"),
        (document(entry(1, "a\nb")), r"entry 1 (owner 'a\nb'): owner: got 'a\nb'; expected 1 to 100 printable"),
        (document(entry(1, "")), "entry 1 (owner ''): owner: got ''"),
        ("[" * 100_000, "The document is not JSON"),
        (document(*map(entry, range(9000))), "The document is larger than 1024 KiB"),
    ],
)
def test_a_wrong_document_is_refused_and_the_entry_named(keys: Sync, db: Path, given: str, sentence: str) -> None:
    refused = keys("sync", given=given)
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert sentence in refused.stderr
    assert SECRET not in refused.stderr
    assert not db.exists()


def test_the_list_says_where_a_key_comes_from(keys: Sync, sync: Sync) -> None:
    sync(entry(1))
    keys("create", "--owner", "bob")
    assert {key["owner"]: key["source"] for key in json.loads(keys("list", "--json").stdout)} == {
        "alice": "fleet",
        "bob": "node",
    }


def test_revoking_one_here_says_that_it_comes_back_and_it_does(keys: Sync, sync: Sync, store: KeyStore) -> None:
    sync(entry(1))
    result = keys("revoke", f"{1:012x}")
    assert "one of the fleet's keys: the next `ansible-playbook ansible/keys.yml` brings it back" in result.stderr
    assert active(store) == {}
    assert done(sync(entry(1))) == {"added": [f"{1:012x}"]}


def test_rotating_one_here_is_refused(keys: Sync, sync: Sync) -> None:
    sync(entry(1))
    refused = keys("rotate", f"{1:012x}")
    assert refused.exit_code == 1
    assert "change it in vault_keys" in refused.stderr


def test_generate_prints_an_entry_for_the_inventory_and_touches_nothing(keys: Sync, tmp_path: Path) -> None:
    result = keys("generate", "--owner", 'Zoë "Z"')
    shown = re.fullmatch(r'- owner: "Zoë \\"Z\\""\n  key: (pk_.*)\n', result.stdout)
    assert shown is not None
    assert parse(shown[1]) is not None
    assert list(tmp_path.iterdir()) == []


DIES_AT_COMMIT = """
import os, signal, sys
from pathlib import Path
from appliance import fleetkeys
from appliance.keys import KeyStore

class Store(KeyStore):
    def db(self):
        return Dying(super().db())

class Dying:
    def __init__(self, transaction):
        self.transaction = transaction
    def __enter__(self):
        return self.transaction.__enter__()
    def __exit__(self, *error):
        os.kill(os.getpid(), signal.SIGKILL)

store = KeyStore(Path(sys.argv[1]), sys.argv[2].encode())
store.__class__ = Store
fleetkeys.sync(fleetkeys.parse(sys.stdin.buffer.read()), store)
"""


def test_kill_9_before_the_end_leaves_the_keys_as_they_were(sync: Sync, store: KeyStore, db: Path) -> None:
    sync(entry(1), entry(2))
    ended = subprocess.run(
        [sys.executable, "-c", DIES_AT_COMMIT, str(db), PEPPER],
        input=document(entry(3), entry(1, "bob")).encode(),
        env=dict(os.environ),
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert active(store) == {f"{1:012x}": "alice", f"{2:012x}": "alice"}
