"""What role ollama refuses and in which words, what its unit and settings say, and how a release is laid out."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import roles
import yaml

sys.path.insert(0, str(roles.ROOT / "ansible" / "library"))
import ollama_adoption
import ollama_installation
import ollama_release
from ollama_release import ReleaseRefused

FOUND = roles.RUNTIME["ollama"]["ollama__found"]
SETTINGS = "etc/systemd/system/ollama.service.d/fleet.conf"
PINS = roles.defaults("ollama")["ollama_checksums"]


def refusals(**given: Any) -> str:
    """What preflight says, for a machine as found and with variables as given."""
    found = {**FOUND, **{name: given.pop(name) for name in list(given) if name in FOUND}}
    return " ".join(roles.evaluate("ollama", "ollama__refusals", None, ollama__found=found, **given))


def settings(**given: Any) -> dict[str, str]:
    """The variables of Ollama's environment that the settings set."""
    text = roles.render("ollama", SETTINGS, None, **given)
    lines = [line.removeprefix("Environment=").strip('"') for line in text.splitlines() if "Environment=" in line]
    return dict(line.split("=", 1) for line in lines)


def test_a_fresh_machine_is_not_refused() -> None:
    assert refusals() == ""
    assert refusals(machine="x86_64") == ""


def test_the_pins_belong_to_the_version_that_is_pinned() -> None:
    pinned = roles.evaluate("ollama", "ollama__pins", None)
    assert pinned == dict.fromkeys(PINS.values(), roles.defaults("ollama")["ollama_version"])


def test_another_version_with_the_old_checksum_is_refused_with_the_way_to_the_new_one() -> None:
    said = refusals(ollama_version="0.35.0")
    assert "ollama_checksums.aarch64 is still the checksum of 0.34.4" in said
    assert "in front of ./ollama-linux-arm64.tar.zst in" in said
    assert "/v0.35.0/sha256sum.txt" in said
    assert refusals(ollama_version="0.35.0", ollama_checksums={"aarch64": "ab" * 32}) == ""


@pytest.mark.parametrize("checksum", ["", "abc", "latest"])
def test_a_checksum_that_is_none_is_refused(checksum: str) -> None:
    assert "it has to be the sha256 of Ollama 0.34.4 in 64 hex digits" in refusals(
        ollama_checksums={"aarch64": checksum}
    )


def test_a_checksum_is_needed_for_the_node_at_hand_only() -> None:
    only = {"aarch64": PINS["aarch64"]}
    assert refusals(ollama_checksums=only) == ""
    assert "ollama_checksums.x86_64 is ''" in refusals(ollama_checksums=only, machine="x86_64")


@pytest.mark.parametrize("version", ["v0.34.4", "latest", "0.34", ""])
def test_a_version_that_is_no_release_is_refused(version: str) -> None:
    assert f"ollama_version is '{version}'" in refusals(ollama_version=version)


def test_a_32_bit_machine_is_refused() -> None:
    assert "The machine is armv7l" in refusals(machine="armv7l")


def test_a_quantized_cache_without_flash_attention_is_refused_and_why() -> None:
    assert "a quantized cache needs flash attention" in refusals(
        ollama_flash_attention="off", ollama_kv_cache_type="q8_0"
    )
    assert refusals(ollama_flash_attention="off", ollama_kv_cache_type="f16") == ""
    assert refusals(ollama_flash_attention="auto", ollama_kv_cache_type="q8_0") == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("ollama_port", 8000), ("ollama_port", 80), ("ollama_port", 65536), ("ollama_memory_max", "80 percent")],
)
def test_a_value_that_would_fail_only_when_ollama_starts_is_refused(name: str, value: object) -> None:
    assert f"{name} is {value!r}" in refusals(**{name: value, "appliance_port": 8000})


@pytest.mark.parametrize("name", ["ollama_keep_alive", "ollama_load_timeout"])
@pytest.mark.parametrize("value", ["", "30", "30m", "1h30m", "30 min", "5d", "-5m", "30m\n", "30m\nUser=root"])
def test_a_duration_that_ollama_would_take_for_another_is_refused(name: str, value: str) -> None:
    said = refusals(**{name: value})
    if value in ("30", "30m", "1h30m"):
        assert said == ""
        return
    assert f"{name} is {json.dumps(value)}; it has to be a duration such as" in said


def test_a_duration_may_have_a_fraction() -> None:
    assert refusals(ollama_keep_alive="1.5h", ollama_load_timeout="2.5m") == ""


def test_for_ever_is_a_keep_alive_as_text_and_as_number() -> None:
    assert refusals(ollama_keep_alive="-1") == refusals(ollama_keep_alive=-1) == ""


@pytest.mark.parametrize("value", ["80%\n", "80%\nUser=root", "x"])
def test_no_line_gets_into_the_unit_through_a_bound_of_memory(value: str) -> None:
    assert "ollama_memory_max is" in refusals(ollama_memory_max=value)


@pytest.mark.parametrize("value", ["models", "/a\nb", '/a"b', "/a%b", "/a\\b", "/a\n", ""])
def test_a_store_that_a_unit_cannot_name_is_refused(value: str) -> None:
    assert f"ollama_models_dir is {json.dumps(value)}; it has to be an absolute path" in refusals(
        ollama_models_dir=value
    )


def test_a_store_with_blanks_in_its_name_is_not_refused() -> None:
    assert refusals(ollama_models_dir="/srv/my models") == ""


@pytest.mark.parametrize("name", ["", "A B", "1A", "A=B", "A\n"])
def test_a_name_that_no_variable_of_the_environment_has_is_refused(name: str) -> None:
    assert f"ollama_environment names {json.dumps(name)}; a variable's name" in refusals(ollama_environment={name: "x"})


@pytest.mark.parametrize("value", ["a\nUser=root", "a\n", "\x1b", None, [], {"a": 1}])
def test_a_value_that_is_not_one_line_is_refused(value: object) -> None:
    said = refusals(ollama_environment={"HTTPS_PROXY": value, "A": 1, "B": "two words", "C": ""})
    assert f"ollama_environment.HTTPS_PROXY is {json.dumps(value)}; a value has to be one line of text, or a" in said
    assert refusals(ollama_environment={"A": 1, "B": "two words", "C": ""}) == ""


def test_what_the_role_sets_itself_cannot_be_set_beside_it() -> None:
    own = [*settings(ollama_flash_attention="on"), "HOME"]
    given = dict.fromkeys([*own, "OLLAMA_DEBUG"], "1")
    assert f"ollama_environment names {', '.join(own)}, which this role sets itself" in refusals(
        ollama_environment=given
    )


@pytest.mark.parametrize("value", ["6G", "512M", "62.5%", "infinity"])
def test_memory_is_bounded_by_a_size_or_a_share(value: str) -> None:
    assert refusals(ollama_memory_max=value) == ""


def test_an_ollama_installed_by_hand_is_refused_or_adopted() -> None:
    there = {"foreign_unit": "/etc/systemd/system/ollama.service", "foreign_binaries": ["/usr/local/bin/ollama"]}
    said = refusals(**there)
    assert "/etc/systemd/system/ollama.service, /usr/local/bin/ollama" in said
    assert "set ollama_adopt to true" in said
    assert refusals(**there, ollama_adopt=True) == ""


def test_a_port_that_is_taken_is_refused_with_who_has_it() -> None:
    nginx = {"pid": 812, "process": "nginx", "unit": "nginx.service"}
    assert "Port 11434 is taken by nginx (pid 812, nginx.service). Stop it, or" in refusals(listener=nginx)
    alone = {"pid": 9, "process": "ollama", "unit": ""}
    assert "taken by ollama (pid 9). Stop it" in refusals(listener=alone, ollama_adopt=True)
    assert refusals(listener={"pid": 1, "process": "ollama", "unit": "ollama.service"}) == ""


def test_ollama_is_reached_from_its_machine_alone_and_asks_nobody_outside() -> None:
    said = settings(ollama_port=11500)
    assert said["OLLAMA_HOST"] == "127.0.0.1:11500"
    assert (said["OLLAMA_NO_CLOUD"], said["OLLAMA_NOPRUNE"], said["OLLAMA_MAX_LOADED_MODELS"]) == ("1", "1", "1")


def test_memory_is_bounded() -> None:
    assert settings()["LLAMA_ARG_CACHE_RAM"] == "256"
    assert "\nMemoryMax=80%\n" in roles.render("ollama", SETTINGS, None)


@pytest.mark.parametrize(("flash", "written"), [("auto", None), ("on", "1"), ("off", "0")])
def test_flash_attention_is_left_to_ollama_unless_told(flash: str, written: str | None) -> None:
    assert settings(ollama_flash_attention=flash).get("OLLAMA_FLASH_ATTENTION") == written


def test_a_tuned_profile_reaches_the_settings() -> None:
    profile = {
        "format": 1,
        "env": {"MAX_CONCURRENT_REQUESTS": 2, "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_KV_CACHE_TYPE": "q8_0"},
    }
    text = roles.render("ollama", SETTINGS, tuned_profile=profile)
    for line in ("OLLAMA_NUM_PARALLEL=2", "OLLAMA_KEEP_ALIVE=-1", "OLLAMA_KV_CACHE_TYPE=q8_0"):
        assert f"Environment={line}\n" in text


def test_more_of_the_environment_can_be_given_and_is_quoted() -> None:
    text = roles.render("ollama", SETTINGS, None, ollama_environment={"HTTPS_PROXY": 'http://a:50%"b'})
    assert 'Environment="HTTPS_PROXY=http://a:50%%\\"b"\n' in text


def test_models_elsewhere_can_be_written_and_nothing_else_can() -> None:
    assert "ReadWritePaths" not in roles.render("ollama", SETTINGS, None)
    elsewhere = roles.render("ollama", SETTINGS, None, ollama_models_dir="/home/pi/models")
    assert 'ReadWritePaths="/home/pi/models"\n' in elsewhere
    assert "ProtectHome=read-only\n" in elsewhere
    assert "ProtectSystem=strict\n" in roles.render("ollama", "etc/systemd/system/ollama.service", None)


def test_cuda_is_laid_out_only_where_nvidia_is() -> None:
    def excluded(**given: Any) -> list[str]:
        return roles.evaluate("ollama", "ollama__excluded", None, **given)

    assert excluded() == ["lib/ollama/cuda_*"]
    assert excluded(ollama__found={**FOUND, "has_nvidia": True}) == []
    assert excluded(ollama_cuda="keep") == []
    assert "PrivateDevices=true" not in roles.render("ollama", SETTINGS, None, ollama_cuda="keep")


@pytest.mark.parametrize(
    ("found", "is_crowded"),
    [
        ({"free_mib": 2011, "releases": {"0.34.3-aaaaaaaa": ""}}, True),
        ({"free_mib": 2012, "releases": {"0.34.3-aaaaaaaa": ""}}, False),
        ({"free_mib": 0, "is_whole": True}, False),
    ],
    ids=["an upgrade on a nearly full disk", "just enough", "nothing is to come"],
)
def test_what_serves_is_no_room_for_what_is_to_come(found: dict[str, Any], is_crowded: bool) -> None:
    assert roles.evaluate("ollama", "ollama__is_crowded", None, ollama__found={**FOUND, **found}) is is_crowded


def test_what_is_free_is_known_where_nothing_was_laid_out_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(f_bavail=5, f_frsize=2**20)
    monkeypatch.setattr(os, "statvfs", {tmp_path: disk}.__getitem__)
    assert ollama_installation.free_mib(tmp_path / "opt" / "ollama") == 5


def test_what_a_power_cut_left_half_is_as_good_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=5, f_frsize=2**20))
    for name in ("incoming/archive", "releases/.0.35.0.partial/bin/ollama", "releases/0.34.4-aaaaaaaa/bin/ollama"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(os.urandom(2**20))
    assert ollama_installation.free_mib(tmp_path) == 7


@pytest.mark.parametrize("name", ["site", "upgrade", "deploy"])
def test_a_playbook_that_lays_out_a_release_looks_for_room_before_it_changes_anything(name: str) -> None:
    plays = yaml.safe_load((roles.ROOT / "ansible" / f"{name}.yml").read_text())
    imported = [task["ansible.builtin.import_role"] for play in plays for task in play.get("tasks", [])]
    steps = [(role["name"], role["tasks_from"]) for role in imported]
    first_change = min(steps.index(step) for step in steps if step[1] == "install")
    laid_out = [role for role, step in steps if step == "install" and role in ("ollama", "appliance")]
    assert [role for role, step in steps[:first_change] if step == "room"] == laid_out != []


@pytest.mark.parametrize(
    ("version", "machine", "asset"),
    [
        ("0.34.4", "aarch64", "v0.34.4/ollama-linux-arm64.tar.zst"),
        ("0.34.4", "x86_64", "v0.34.4/ollama-linux-amd64.tar.zst"),
        ("0.13.5", "aarch64", "v0.13.5/ollama-linux-arm64.tgz"),
    ],
)
def test_the_archive_of_each_version_and_machine_has_its_address(version: str, machine: str, asset: str) -> None:
    found = {**FOUND, "machine": machine}
    assert roles.evaluate("ollama", "ollama__from", None, ollama_version=version, ollama__found=found).endswith(asset)


class Shell:
    """What of an AnsibleModule the release needs."""

    def run_command(self, command: list[str]) -> tuple[int, str, str]:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout, ended.stderr


def archive(folder: Path, **files: str) -> Path:
    """A .tgz of the real layout; `files` by their names, with __ for a slash."""
    made = folder / "incoming" / "archive"
    made.parent.mkdir(exist_ok=True)
    tree = folder / "tree"
    for name, text in {"bin__ollama": "engine", **files}.items():
        path = tree / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    with tarfile.open(made, "w:gz") as tar:
        for path in sorted(tree.rglob("*")):
            tar.add(path, path.relative_to(tree), recursive=False)
    return made


def lay_out(folder: Path, made: Path, release: str = "0.34.4-aaaaaaaa", **wanted: Any) -> list[str]:
    given = {
        "archive": str(made),
        "checksum": hashlib.sha256(made.read_bytes()).hexdigest(),
        "release": release,
        "version": "0.34.4",
        "root": str(folder),
        "exclude": ["lib/ollama/cuda_*"],
        "keep": 2,
        "referred": [],
    }
    return ollama_release.lay_out(Shell(), {**given, **wanted})


def test_a_release_is_whole_or_not_there(tmp_path: Path) -> None:
    lay_out(tmp_path, archive(tmp_path, lib__ollama__libggml="so"))
    release = tmp_path / "releases" / "0.34.4-aaaaaaaa"
    assert ollama_installation.releases(tmp_path) == {release.name: ""}
    (release / "lib/ollama/libggml").write_text("half")
    assert ollama_installation.releases(tmp_path) == {release.name: "lib/ollama/libggml has 4 bytes instead of 2"}
    (release / "bin/ollama").unlink()
    assert ollama_installation.releases(tmp_path) == {release.name: "bin/ollama is missing"}
    (release / "RELEASE.json").write_text("{")
    assert ollama_installation.releases(tmp_path) == {release.name: "it has no readable RELEASE.json"}


def test_a_broken_release_is_laid_out_anew(tmp_path: Path) -> None:
    made = archive(tmp_path)
    lay_out(tmp_path, made)
    (tmp_path / "releases/0.34.4-aaaaaaaa/bin/ollama").unlink()
    (tmp_path / "releases/.0.34.4-bbbbbbbb.partial/bin").mkdir(parents=True)
    lay_out(tmp_path, made)
    assert ollama_installation.releases(tmp_path) == {"0.34.4-aaaaaaaa": ""}
    assert [path.name for path in (tmp_path / "releases").iterdir()] == ["0.34.4-aaaaaaaa"]


def test_nothing_is_unpacked_from_an_archive_with_another_checksum(tmp_path: Path) -> None:
    with pytest.raises(ReleaseRefused, match=f"and {'ab' * 32} is pinned. It was removed, nothing was unpacked"):
        lay_out(tmp_path, archive(tmp_path), checksum="ab" * 32)
    assert list((tmp_path / "releases").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"<html>", "neither .tar.zst nor .tgz"), (b"\x1f\x8bnothing", "could not be unpacked"), (b"", "neither")],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    made = tmp_path / "archive"
    made.write_bytes(content)
    with pytest.raises(ReleaseRefused, match=said):
        lay_out(tmp_path, made)
    assert list((tmp_path / "releases").iterdir()) == []


def test_an_archive_without_ollama_is_refused(tmp_path: Path) -> None:
    made = archive(tmp_path)
    with tarfile.open(made, "w:gz") as tar:
        tar.add(tmp_path / "tree/bin/ollama", "ollama")
    with pytest.raises(ReleaseRefused, match="holds no program bin/ollama"):
        lay_out(tmp_path, made)


def test_cuda_stays_in_the_archive(tmp_path: Path) -> None:
    made = archive(tmp_path, lib__ollama__cuda_v13__libggml="big", lib__ollama__libggml="so")
    lay_out(tmp_path, made)
    release = tmp_path / "releases/0.34.4-aaaaaaaa"
    assert sorted(os.listdir(release / "lib/ollama")) == ["libggml"]
    assert sorted(json.loads((release / "RELEASE.json").read_text())["files"]) == ["bin/ollama", "lib/ollama/libggml"]


def test_the_current_release_and_the_one_before_stay(tmp_path: Path) -> None:
    made = archive(tmp_path)
    for age, name in enumerate(("d", "c", "b", "a")):
        lay_out(tmp_path, made, release=f"0.34.{name}", keep=9)
        os.utime(tmp_path / "releases" / f"0.34.{name}", (age, age))
    (tmp_path / "current").symlink_to("releases/0.34.d")
    assert lay_out(tmp_path, made, release="0.34.new") == ["0.34.b", "0.34.c"]
    assert sorted(os.listdir(tmp_path / "releases")) == ["0.34.a", "0.34.d", "0.34.new"]


def test_failed_upgrades_do_not_cost_the_release_that_a_rollback_needs(tmp_path: Path) -> None:
    made = archive(tmp_path)
    for age, name in enumerate(("before", "serving")):
        lay_out(tmp_path, made, release=f"0.34.{name}")
        os.utime(tmp_path / "releases" / f"0.34.{name}", (age, age))
    (tmp_path / "current").symlink_to("releases/0.34.serving")
    referred = ["releases/0.34.before", "releases/0.34.serving", "releases/0.1.0-of-the-appliance"]
    assert lay_out(tmp_path, made, release="0.34.failed", referred=referred) == []
    assert lay_out(tmp_path, made, release="0.34.again", referred=referred) == ["0.34.failed"]
    assert sorted(os.listdir(tmp_path / "releases")) == ["0.34.again", "0.34.before", "0.34.serving"]


def test_the_role_tells_which_releases_deployments_refer_to() -> None:
    tasks = yaml.safe_load((roles.ROLES / "ollama/tasks/release.yml").read_text())
    (laid_out,) = [task["ollama_release"] for task in tasks if "ollama_release" in task]
    registered = [task["register"] for task in tasks if "deployment" in task]
    assert [f"{{{{ {name}.links }}}}" for name in registered] == [laid_out["referred"]]


def test_a_download_is_bounded_as_a_whole_and_not_only_while_it_stands_still() -> None:
    tasks = yaml.safe_load((roles.ROLES / "ollama/tasks/release.yml").read_text())
    downloads = [task for block in tasks for task in block.get("block", []) if "ansible.builtin.get_url" in task]
    assert [task.get("timeout") for task in downloads] == ["{{ ollama_download_max_s }}"] * 2


def test_a_unit_is_ours_when_it_starts_what_we_laid_out(tmp_path: Path) -> None:
    unit = tmp_path / "ollama.service"
    unit.write_text(roles.render("ollama", "etc/systemd/system/ollama.service", None))
    assert ollama_installation.is_own(unit, Path("/opt/ollama"))
    unit.write_text("[Service]\nExecStart=/usr/local/bin/ollama serve\n# ExecStart=/opt/ollama/x\n")
    assert not ollama_installation.is_own(unit, Path("/opt/ollama"))


def test_the_one_who_listens_is_found_in_the_kernels_tables() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000   997        0 31337 1 0\n"
        "   1: 0100007F:2CAA 0100007F:9C40 01 00000000:00000000 00:00000000 00000000   997        0 31338 1 0\n"
    )
    assert ollama_installation.listening_inodes(11434, [table]) == {"31337"}
    assert ollama_installation.listening_inodes(11435, [table, ""]) == set()


@pytest.mark.parametrize(
    "cgroups",
    ["0::/system.slice/ollama.service\n", "4:memory:/\n1:name=systemd:/docker/ab/system.slice/ollama.service\n"],
)
def test_a_process_has_its_unit_in_either_version_of_cgroups(cgroups: str) -> None:
    assert ollama_installation.unit_of(cgroups) == "ollama.service"
    assert ollama_installation.unit_of("0::/user.slice/user-1000.slice/session-4.scope\n") == ""


def test_the_unit_of_another_ollama_goes_aside_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, drop_ins, aside = tmp_path / "ollama.service", tmp_path / "ollama.service.d", tmp_path / "state" / "adopted"
    monkeypatch.setattr(ollama_adoption, "ETC", unit)
    monkeypatch.setattr(ollama_adoption, "DROP_INS", drop_ins)
    drop_ins.mkdir()
    (drop_ins / "override.conf").write_text("theirs")
    unit.write_text("theirs")
    ollama_adoption.put_aside(unit, aside, was_enabled=True)
    unit.write_text("ours")
    (drop_ins / "override.conf").unlink()
    ollama_adoption.put_back(aside)
    assert (unit.read_text(), (drop_ins / "override.conf").read_text()) == ("theirs", "theirs")
    assert not aside.exists()
