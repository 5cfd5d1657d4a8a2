"""The role appliance: what it writes is what the appliance reads, and what it cannot do it refuses in a sentence."""

from __future__ import annotations

import importlib
import json
import os
import pwd
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import roles
import yaml
from click.testing import CliRunner

from appliance.__main__ import main
from appliance.config import SETTINGS
from appliance.keys import KeyStore
from appliance.sources import load

sys.path.insert(0, str(roles.ROOT / "ansible" / "library"))
sys.path.insert(0, str(roles.ROOT / "ansible" / "filter_plugins"))
appliance_problems = importlib.import_module("appliance_settings").appliance_problems
appliance_release = importlib.import_module("appliance_release")
appliance_state = importlib.import_module("appliance_state")

ENV, UNIT, WRAPPER = "etc/pi-llm/appliance.env", "etc/systemd/system/pi-llm.service", "usr/local/bin/pi-llm"
PEPPERS = {"API_KEY_PEPPER", "API_KEY_PEPPER_FILE"}
OWNED = {*PEPPERS, "API_KEYS_DB", "PID_FILE"}
TUNED = {"format": 1, "env": {"N_CTX": 1024, "MAX_TOKENS": 128, "MAX_CONCURRENT_REQUESTS": 2}}


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def unit(**variables: Any) -> list[str]:
    lines = roles.render("appliance", UNIT, **variables).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("tuned", [None, TUNED])
def test_the_file_has_every_setting_but_the_pepper_and_the_appliance_accepts_it(tmp_path, tuned):
    text = roles.render("appliance", ENV, **({"tuned_profile": tuned} if tuned else {}))
    assert settings(text).keys() == SETTINGS.keys() - PEPPERS
    (tmp_path / "node.env").write_text(text)
    checked = CliRunner().invoke(main, ["config", "check", str(tmp_path / "node.env")])
    assert checked.exit_code == 0, checked.output


def test_the_defaults_are_the_appliances_own(tmp_path):
    (tmp_path / "node.env").write_text(roles.render("appliance", ENV, inventory=None))
    config = load(tmp_path / "node.env", environ={}, dotenv=None).config
    differing = {row.name for row in SETTINGS.values() if getattr(config, row.field) != row.default}
    assert differing == {"API_KEYS_DB", "PID_FILE"}


def test_every_setting_is_a_variable_of_the_role():
    assert {f"appliance_{row.field}" for row in SETTINGS.values() if row.name not in OWNED} <= set(
        roles.defaults("appliance")
    )


def test_what_was_tuned_reaches_the_file():
    assert (
        settings(roles.render("appliance", ENV, tuned_profile=TUNED)).items()
        >= {
            "N_CTX": "1024",
            "MAX_TOKENS": "128",
            "MAX_CONCURRENT_REQUESTS": "2",
        }.items()
    )


def test_words_for_a_truth_value_become_the_appliances():
    assert settings(roles.render("appliance", ENV, appliance_ollama_warmup="no"))["OLLAMA_WARMUP"] == "false"


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"appliance_n_ctx": 64}, "appliance_n_ctx, N_CTX: '64' is not allowed; it must be a whole number from 128"),
        ({"appliance_max_tokens": 512}, "appliance_max_tokens, MAX_TOKENS: 512 must be less than N_CTX"),
        ({"appliance_ollama_model": "qwen 2.5"}, "appliance_ollama_model, OLLAMA_MODEL: 'qwen 2.5' is not allowed"),
    ],
)
def test_a_wrong_setting_is_told_on_the_controller_by_its_variable(variables, told):
    problems = roles.evaluate("appliance", "appliance__settings | appliance_problems", **variables)
    assert [problem[: len(told)] for problem in problems] == [told]
    assert "/tmp" not in problems[0]  # noqa: S108  the file that was written to ask is nobody's business


def test_right_settings_have_no_problems():
    assert appliance_problems(roles.evaluate("appliance", "appliance__settings")) == []


# ---------------------------------------------------------------------------------------------------------------- unit


@pytest.mark.parametrize("drain_s", [0, 0.5, 25, 600])
def test_systemd_waits_longer_for_a_stop_than_the_service_for_its_generations(drain_s):
    (line,) = [line for line in unit(appliance_drain_s=drain_s) if line.startswith("TimeoutStopSec=")]
    assert int(line.partition("=")[2]) > drain_s + 10


def test_readiness_is_the_workers_word():
    assert {"Type=notify", "NotifyAccess=all", "TimeoutStartSec=600", "WatchdogSec=60"} <= set(unit())


def test_the_service_outlives_an_ollama_that_restarts():
    assert not [line for line in unit() if re.match("(Requires|BindsTo|PartOf|Requisite)=", line)]
    assert "After=network-online.target ollama.service" in unit()


def test_the_pepper_comes_as_a_credential_and_not_in_the_unit():
    text = roles.render("appliance", UNIT, appliance_pepper="a secret of the vault")
    assert "LoadCredential=pepper:/etc/pi-llm/pepper" in text
    assert "Environment=API_KEY_PEPPER_FILE=%d/pepper" in text
    assert "a secret" not in text + roles.render("appliance", ENV, appliance_pepper="a secret of the vault")


def test_going_back_is_the_link_and_a_restart_since_the_unit_names_no_release():
    assert "ExecStart=/opt/pi-llm/current/venv/bin/appliance serve" in unit()


def test_no_other_programs_wish_for_workers_reaches_it():
    assert "UnsetEnvironment=WEB_CONCURRENCY GUNICORN_CMD_ARGS" in unit()


def test_the_sandbox_hides_nothing_of_what_a_board_says_of_itself():
    # A Pi's throttle bits are a file of sysfs that all may read; no program of root's has to hand them over.
    hiding = "ProcSubset|InaccessiblePaths|TemporaryFileSystem|RootDirectory|RootImage|BindPaths|BindReadOnlyPaths"
    assert [line for line in unit() if re.match(f"({hiding})=", line)] == []


def test_only_a_port_that_needs_a_privilege_gets_one():
    assert "CapabilityBoundingSet=" in unit()
    low = unit(appliance_port=80)
    assert {"AmbientCapabilities=CAP_NET_BIND_SERVICE", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE"} <= set(low)
    assert "PrivateUsers=true" not in low  # the capability would count in its own namespace alone


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def command(tmp_path):
    """command(uid, *words): what the wrapper hands on, with stand-ins for id, setpriv and the release."""
    text = roles.render(
        "appliance", WRAPPER, appliance__home=str(tmp_path), appliance__pepper_file=f"{tmp_path}/pepper"
    )
    (tmp_path / "pi-llm").write_text(text)
    (tmp_path / "pepper").write_text("salt and pepper\n")
    (tmp_path / "bin").mkdir()

    def run(uid: int, *words: str) -> subprocess.CompletedProcess[str]:
        stands_in(tmp_path / "bin/id", f"echo {uid}")
        stands_in(tmp_path / "bin/setpriv", 'echo "$@"; echo "$API_KEY_PEPPER $APPLIANCE_CONFIG $PWD"')
        environ = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        argv = ["sh", str(tmp_path / "pi-llm"), *words]
        return subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)

    return run


def stands_in(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_command_runs_the_serving_release_with_the_pepper_in_its_environment_alone(command, tmp_path):
    stands_in(tmp_path / "current/venv/bin/appliance", "true")
    argv, environ = command(0, "keys", "create", "two words").stdout.splitlines()
    assert argv.endswith(f"-- {tmp_path}/current/venv/bin/appliance keys create two words")
    assert "salt" not in argv
    assert environ == "salt and pepper /etc/pi-llm/appliance.env /"


def test_the_command_alone_shows_the_help(command, tmp_path):
    stands_in(tmp_path / "current/venv/bin/appliance", "true")
    assert command(0).stdout.splitlines()[0].endswith("appliance --help")


def test_the_command_says_what_it_needs(command):
    refused, missing = command(1000, "keys", "list"), command(0, "keys", "list")
    assert (refused.returncode, missing.returncode) == (1, 1)
    assert "sudo pi-llm keys list" in refused.stderr
    assert "no release is installed" in missing.stderr


# ------------------------------------------------------------------------------------------------------------ refusals


def refusals(pepper: str = "", **state: Any) -> list[str]:
    calm = {"port_taken_by": "", "is_other_pepper": False, "has_own_keys": False}
    return roles.evaluate(
        "appliance", "appliance__refusals", appliance__state={**calm, **state}, appliance_pepper=pepper
    )


def test_nothing_is_refused_on_a_fresh_node():
    assert refusals() == []


def test_a_taken_port_is_refused_with_the_program_that_has_it():
    (told,) = refusals(port_taken_by="nginx (process 812)")
    assert "nginx (process 812) listens on port 8000" in told
    assert "appliance_port" in told


def test_another_pepper_is_refused_while_keys_depend_on_the_first():
    assert refusals(pepper="p" * 16, is_other_pepper=True) == []
    (told,) = refusals(pepper="p" * 16, is_other_pepper=True, has_own_keys=True)
    assert "/etc/pi-llm/pepper into the vault" in told
    assert '"pepper"' in told
    assert "\n" not in told


@pytest.mark.parametrize("value", ["half", "512M\n", "512M\nUser=root", ""])
def test_a_bound_of_memory_that_is_none_is_refused(value):
    calm = {"port_taken_by": "", "is_other_pepper": False, "has_own_keys": False}
    (told,) = roles.evaluate(
        "appliance", "appliance__refusals", appliance__state=calm, appliance_pepper="", appliance_memory_max=value
    )
    assert told.startswith(f"appliance_memory_max is {json.dumps(value)}; it has to be a size such as 512M")


@pytest.mark.parametrize(
    ("free_mib", "releases", "is_crowded"),
    [(611, ["1-old"], True), (612, ["1-old"], False), (0, ["1-old", "2-new"], False)],
    ids=["an upgrade on a nearly full disk", "just enough", "nothing is to come"],
)
def test_what_serves_is_no_room_for_what_is_to_come(free_mib, releases, is_crowded):
    state = {"free_mib": free_mib, "releases": releases}
    packed = {"release": "2-new"}
    found = roles.evaluate("appliance", "appliance__is_crowded", appliance__state=state, appliance__packed=packed)
    assert found is is_crowded


def test_a_short_pepper_is_refused_without_being_shown():
    (told,) = refusals(pepper="short secret")
    assert "12 characters" in told
    assert "short secret" not in told


# ----------------------------------------------------------------------------------------------------- what a node says


@pytest.mark.parametrize(
    ("bound", "host", "is_taken"),
    [
        ("127.0.0.1", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("::1", "::1", True),
        ("::1", "localhost", True),
    ],
)
def test_who_listens_on_the_port_is_found(bound, host, is_taken):
    with socket.create_server((bound, 0), family=socket.AF_INET6 if ":" in bound else socket.AF_INET) as server:
        holder = appliance_state.port_taken_by(host, server.getsockname()[1], "pi-llm.service")
    assert bool(holder) == is_taken
    assert f"(process {os.getpid()})" in holder or not is_taken


def test_a_free_port_has_no_holder():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert appliance_state.port_taken_by("0.0.0.0", port, "pi-llm.service") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask as another user")
def test_only_working_keys_of_the_nodes_own_count(tmp_path):
    database = tmp_path / "api_keys.db"
    assert not appliance_state.has_own_keys(database)
    store = KeyStore(database, b"sixteen bytes ok")
    store.issue("probe", source="probe")
    assert not appliance_state.has_own_keys(database)
    key = store.issue("alice")
    assert appliance_state.has_own_keys(database)  # while the service has it open, too
    store.revoke(key.id)
    assert not appliance_state.has_own_keys(database)
    store.close()


def test_a_database_that_cannot_be_read_may_hold_keys(tmp_path):
    (tmp_path / "api_keys.db").write_text("no database at all, whatever its name says" * 9)
    assert appliance_state.has_own_keys(tmp_path / "api_keys.db")


@pytest.mark.parametrize(
    ("pepper", "is_other"), [("", False), ("the same one", False), ("  the same one\n", False), ("another", True)]
)
def test_a_pepper_is_compared_as_the_appliance_reads_it(tmp_path, pepper, is_other):
    file = tmp_path / "pepper"
    assert not appliance_state.is_other_pepper(file, pepper)
    file.write_text("the same one\n")
    assert appliance_state.is_other_pepper(file, pepper) == is_other


# ------------------------------------------------------------------------------------------------------------ releases


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A node's /opt/pi-llm, where installing only makes the folder, and fails when its name has "broken"."""

    def install(home: Path, release: str, archive: Path) -> None:
        (home / "releases" / release / "venv" / "bin").mkdir(parents=True, exist_ok=True)
        archive.unlink()
        if "broken" in release:
            raise appliance_release.ReleaseError("the new release could not run")
        (home / "releases" / release / "venv" / "bin" / "appliance").touch()
        appliance_release._mark(home / "releases" / release, release)

    monkeypatch.setattr(appliance_release, "install", install)
    (tmp_path / "releases").mkdir()
    return tmp_path


def put(home: Path, release: str, *keep: str, check: bool = False) -> list[str]:
    archive = home / "releases" / f"{release}.tar"
    if not check:
        archive.touch()
    return appliance_release.put(home, release, archive, list(keep), check=check)


def test_a_release_counts_when_its_mark_was_written(home):
    put(home, "0.1.0-aaaaaaaa")
    with pytest.raises(appliance_release.ReleaseError):
        put(home, "0.1.0-broken", "0.1.0-aaaaaaaa")
    assert appliance_state.releases(home) == ["0.1.0-aaaaaaaa"]


def test_a_release_for_another_python_does_not_count(home):
    put(home, "0.1.0-aaaaaaaa")
    mark = home / "releases/0.1.0-aaaaaaaa/RELEASE.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"python": "2.7"}))
    assert appliance_state.releases(home) == []
    assert not appliance_release.is_whole(mark.parent)


def test_the_serving_release_and_those_of_deployments_stay_and_all_else_goes(home):
    for release in ("1-current", "1-proven", "1-forgotten"):
        put(home, release, "1-current", "releases/1-proven")
    (home / "current").symlink_to("releases/1-current")
    (home / "releases" / "1-killed.tar").touch()
    assert put(home, "2-new", "releases/1-proven", check=True) == ["1-forgotten", "1-killed.tar"]
    assert put(home, "2-new", "releases/1-proven") == ["1-forgotten", "1-killed.tar"]
    assert {path.name for path in (home / "releases").iterdir()} == {"1-current", "1-proven", "2-new"}


def test_a_release_that_a_killed_run_finished_meanwhile_is_taken_as_it_is(home):
    put(home, "1-new")
    mark = home / "releases/1-new/RELEASE.json"
    made_at = mark.stat().st_mtime_ns
    put(home, "1-new")
    assert mark.stat().st_mtime_ns == made_at
    assert [path.name for path in (home / "releases").iterdir()] == ["1-new"]


def test_what_a_cut_copy_left_in_the_ssh_users_home_goes(tmp_path, monkeypatch):
    person = pwd.struct_passwd(("pi", "x", 1000, 1000, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setenv("SUDO_USER", "pi")
    monkeypatch.setattr(pwd, "getpwnam", {"pi": person}.__getitem__)
    left = tmp_path / ".ansible" / "pi-llm-fleet" / "ansible-tmp-1"
    left.mkdir(parents=True)
    (left / "source").touch()
    appliance_release.clean(".ansible/pi-llm-fleet")
    assert list((tmp_path / ".ansible").iterdir()) == []


def test_copies_arrive_where_the_module_cleans_up():
    tasks = yaml.safe_load((roles.ROLES / "appliance/tasks/release.yml").read_text())
    (copy,) = [task for task in tasks if "ansible.builtin.copy" in task]
    (installed,) = [task["appliance_release"] for task in tasks if "appliance_release" in task]
    assert copy["vars"]["ansible_remote_tmp"] == f"~/{installed['leftovers']}"


def test_check_mode_installs_nothing(home):
    put(home, "1-new", check=True)
    assert list((home / "releases").iterdir()) == []
