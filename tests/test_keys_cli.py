"""`appliance keys`: what it prints where, and what it refuses with which status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.__main__ import main
from appliance.commands.keys import duration, iso, table
from appliance.key import Key, parse

Run = Callable[..., Result]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `appliance keys …` in a directory of its own, with none of this machine's settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("API_KEYS_DB", "API_KEY_PEPPER", "API_KEY_PEPPER_FILE"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(main, ["keys", *arguments])


def create(run: Run, owner: str = "alice", *options: str) -> str:
    """Return the id of a new key."""
    result = run("create", "--owner", owner, *options)
    assert result.exit_code == 0
    parsed = parse(result.stdout.strip())
    assert parsed is not None
    return parsed[0]


def listed(run: Run) -> list[dict[str, str | None]]:
    keys: list[dict[str, str | None]] = json.loads(run("list", "--json").stdout)
    return keys


def test_create_prints_the_key_alone_on_stdout_and_the_words_on_stderr(run: Run, tmp_path: Path) -> None:
    result = run("create", "--owner", "alice")
    assert re.fullmatch(r"pk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\n", result.stdout)
    assert f"of alice made in {tmp_path}/api_keys.db. It is shown only this once" in result.stderr
    assert result.stdout.strip() not in result.stderr


def test_list_shows_an_aligned_table_without_secrets(run: Run) -> None:
    key = run("create", "--owner", "alice", "--expires", "90d").stdout.strip()
    create(run, "bob the builder")
    result = run("list")
    head, first, second = result.stdout.splitlines()
    assert head.split() == ["ID", "OWNER", "STATE", "FROM", "CREATED", "LAST", "USED", "EXPIRES", "ROTATED", "TO"]
    assert re.fullmatch(rf"{key[3:15]}  alice            active  node  {TIME}  -          {TIME}  -", first)
    assert head.index("STATE") == first.index("active") == second.index("active")
    assert key[16:] not in result.output


def test_list_of_no_keys_is_only_the_head(run: Run) -> None:
    assert table([], 0.0).splitlines() == ["ID  OWNER  STATE  FROM  CREATED  LAST USED  EXPIRES  ROTATED TO"]


def test_list_json_is_for_programs(run: Run) -> None:
    key_id = create(run, "alice", "--expires", "24h")
    (key,) = listed(run)
    assert (key["id"], key["owner"], key["state"], key["last_used_at"]) == (key_id, "alice", "active", None)
    assert re.fullmatch(TIME, key["expires_at"] or "")
    assert "digest" not in key


def test_a_state_is_active_revoked_or_expired() -> None:
    key = Key("0123456789ab", "alice", 0, 60, None, 100, None, b"")
    assert "alice  active " in table([key], 99.0)
    assert "alice  expired" in table([key], 100.0)
    assert iso(60) == "1970-01-01T00:01:00Z"


def test_revoke_says_so_and_the_list_shows_it(run: Run) -> None:
    key_id = create(run)
    result = run("revoke", key_id)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"Key {key_id} is revoked" in result.stderr
    assert [key["state"] for key in listed(run)] == ["revoked"]


def test_rotate_prints_the_new_key_alone(run: Run) -> None:
    old = create(run)
    result = run("rotate", old, "--overlap", "24h")
    assert parse(result.stdout.strip()) is not None
    assert f"takes the place of {old}, which works until 20" in result.stderr
    assert [key["state"] for key in listed(run)] == ["active", "active"]
    assert listed(run)[0]["replaced_by"] == result.stdout[3:15]


def test_rotate_without_overlap_ends_the_old_key(run: Run) -> None:
    assert "which is revoked" in run("rotate", create(run)).stderr
    assert [key["state"] for key in listed(run)] == ["revoked", "active"]


@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_an_id_that_no_key_has_ends_with_1_and_a_sentence(run: Run, command: str) -> None:
    create(run)
    result = run(command, "nix")
    assert result.exit_code == 1
    assert "Error: No key has the id 'nix'; `appliance keys list` shows all" in result.stderr


@pytest.mark.parametrize("arguments", [("list",), ("revoke", "x"), ("rotate", "x")])
def test_a_database_that_does_not_exist_is_not_made_by_looking(
    run: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert f"There is no key database {tmp_path}/api_keys.db (API_KEYS_DB)" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["90", "d", "", "0s", "-1d", "1.5h", "90D", "1 d", "٩d", "36501d", "9" * 30 + "s"])
def test_a_wrong_duration_ends_with_2_and_says_what_is_allowed(run: Run, text: str) -> None:
    result = run("create", "--owner", "alice", f"--expires={text}")
    assert result.exit_code == 2
    assert f"{text!a} is not allowed" in result.stderr
    assert "as in 90d, 24h, 30m or 45s, from 1s to 36500d." in result.stderr


def test_durations_are_seconds() -> None:
    read = duration(shortest_s=0)
    assert [read(text) for text in ("90d", "24h", "30m", "45s", "0s")] == [7776000, 86400, 1800, 45, 0]


@pytest.mark.parametrize("owner", ["", "a\x1b[31m", "x" * 101])
def test_a_wrong_owner_ends_with_2_and_says_what_is_allowed(run: Run, owner: str) -> None:
    result = run("create", "--owner", owner)
    assert result.exit_code == 2
    assert "expected 1 to 100 printable characters" in result.stderr
    assert "\x1b" not in result.stderr


def test_a_wrong_setting_ends_with_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "node.env").write_text("KEY_LIMIT=none\n")
    result = run("list", "--config", "node.env")
    assert result.exit_code == 2
    assert "KEY_LIMIT" in result.stderr


def test_the_profile_says_where_the_keys_are(run: Run, tmp_path: Path) -> None:
    (tmp_path / "node.env").write_text(f"API_KEYS_DB={tmp_path}/other.db\nKEY_LIMIT=1\n")
    for _ in range(2):  # KEY_LIMIT is for POST /keys/generate
        create(run, "alice", "--config", "node.env")
    assert (tmp_path / "other.db").exists()


def test_a_wrong_pepper_ends_with_1_and_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    create(run)
    monkeypatch.setenv("API_KEY_PEPPER", "an0ther pepper, as long")
    result = run("create", "--owner", "bob")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "were made under another pepper" in result.stderr
    assert "an0ther" not in result.stderr


def test_it_starts_without_gevent_and_falcons_server(tmp_path: Path) -> None:
    code = "import appliance.commands.keys, sys; sys.exit('gevent' in sys.modules or 'gunicorn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ), check=False).returncode == 0
