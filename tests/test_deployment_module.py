"""The module `deployment`: what a node was proven to serve with is remembered, compared and put back."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).parent.parent / "ansible" / "library" / "deployment.py"


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deployment", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deployment = _loaded()


class Machine:
    """A node's files in a temporary directory, and the module's functions on them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "state" / "deployment"
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.unit, self.env, self.link = (self.disk / name for name in ("a.service", "a.env", "current"))
        self.engine = self.disk / "b.service"
        self.write(1)
        self.engine.write_text("engine\n")

    @property
    def parts(self) -> dict[str, list[str]]:
        appliance = [str(path) for path in (self.unit, self.env, self.link)]
        return {"appliance": appliance, "ollama": [str(self.engine)]}

    def write(self, release: int) -> None:
        self.unit.write_text(f"unit {release}\n")
        self.env.write_text(f"N_CTX={release}\n")
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(f"releases/{release}")

    def compared(self) -> list[str]:
        return deployment.compared(self.root, self.parts)["changed_parts"]

    def begun(self, check: bool = False) -> list[str]:
        return deployment.begun(self.root, self.parts, check=check)["changed_parts"]

    def proven(self, check: bool = False) -> dict[str, Any]:
        return deployment.proven(self.root, self.parts, check=check)

    def restored(self, source: str = "proven", check: bool = False, **parts: list[str]) -> dict[str, Any]:
        return deployment.restored(self.root, parts, source, check=check)

    def seen(self) -> tuple[str, str, str]:
        return self.unit.read_text(), self.env.read_text(), os.readlink(self.link)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_node_where_nothing_was_proven_has_changed_in_every_part(machine: Machine) -> None:
    answer = deployment.compared(machine.root, machine.parts)
    assert answer["changed_parts"] == ["appliance", "ollama"]
    assert (answer["has_proven"], answer["has_previous"], answer["changed"]) == (False, False, False)
    assert not machine.root.exists()


def test_what_was_proven_differs_in_nothing_and_proving_it_again_changes_nothing(machine: Machine) -> None:
    assert machine.proven()["changed"]
    assert machine.compared() == []
    again = machine.proven()
    assert (again["changed"], again["changed_parts"]) == (False, [])


@pytest.mark.parametrize("change", ["content", "mode", "target", "gone", "kind"])
def test_any_change_of_a_file_or_link_is_seen_in_its_part_alone(machine: Machine, change: str) -> None:
    machine.proven()
    if change == "content":
        machine.unit.write_text("other\n")
    elif change == "mode":
        machine.env.chmod(0o600)
    elif change == "target":
        machine.write(1)
        machine.link.unlink()
        machine.link.symlink_to("releases/2")
    else:
        machine.env.unlink()
        if change == "kind":
            machine.env.symlink_to("a.service")
    assert machine.compared() == ["appliance"]


def test_a_file_that_appears_where_none_was_is_a_change_and_going_back_removes_it(machine: Machine) -> None:
    machine.env.unlink()
    machine.proven()
    machine.env.write_text("N_CTX=2\n")
    assert machine.compared() == ["appliance"]
    assert machine.restored()["restored"] == [str(machine.env)]
    assert not machine.env.exists()


def test_going_back_brings_content_mode_and_links(machine: Machine) -> None:
    machine.env.chmod(0o640)
    machine.proven()
    machine.write(2)
    machine.env.chmod(0o600)
    answer = machine.restored()
    assert (answer["changed"], answer["changed_parts"]) == (True, ["appliance"])
    assert machine.seen() == ("unit 1\n", "N_CTX=1\n", "releases/1")
    assert machine.env.stat().st_mode & 0o7777 == 0o640
    assert machine.compared() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_going_back_brings_the_owner(machine: Machine) -> None:
    os.chown(machine.env, 1, 1)
    machine.proven()
    os.chown(machine.env, 0, 0)
    assert machine.compared() == ["appliance"]
    machine.restored()
    assert (machine.env.stat().st_uid, machine.env.stat().st_gid) == (1, 1)


def test_the_one_before_can_be_brought_back_too(machine: Machine) -> None:
    machine.proven()
    machine.write(2)
    machine.proven()
    assert machine.restored("previous")["changed"]
    assert machine.seen()[2] == "releases/1"
    assert machine.compared() == ["appliance"]  # it is to be proven again


def test_going_back_to_what_the_disk_holds_changes_nothing(machine: Machine) -> None:
    machine.proven()
    answer = machine.restored()
    assert (answer["changed"], answer["restored"]) == (False, [])


def test_after_going_back_there_is_nothing_to_go_back_to_and_after_going_on_there_is(machine: Machine) -> None:
    for release in (1, 2, 1):
        machine.write(release)
        machine.proven()
    assert not deployment.compared(machine.root, machine.parts)["has_previous"]
    machine.write(2)
    assert machine.proven()["has_previous"]


def test_what_began_to_restart_has_to_until_it_is_proven_even_if_the_disk_is_as_it_was(machine: Machine) -> None:
    machine.proven()
    machine.write(2)
    assert machine.begun() == ["appliance"]
    machine.write(1)
    assert (machine.compared(), machine.begun()) == (["appliance"], ["appliance"])
    assert machine.proven()["has_previous"] is False
    assert machine.compared() == []


def test_beginning_where_nothing_differs_or_in_check_mode_writes_nothing(machine: Machine) -> None:
    machine.proven()
    file = machine.root / "snapshots.json"
    before = file.stat()
    assert machine.begun() == []
    machine.write(2)
    assert machine.begun(check=True) == ["appliance"]
    assert file.stat() == before


def test_a_release_that_going_back_needs_and_that_is_gone_is_named(machine: Machine) -> None:
    machine.proven()
    machine.write(2)
    assert machine.proven()["lost"] == [str(machine.disk / "releases/1")]
    (machine.disk / "releases/1").mkdir(parents=True)
    assert machine.proven()["lost"] == []


def test_only_the_named_parts_go_back(machine: Machine) -> None:
    machine.proven()
    machine.write(2)
    machine.engine.write_text("other\n")
    machine.restored(ollama=[])
    assert (machine.engine.read_text(), machine.seen()[2]) == ("engine\n", "releases/2")


def test_a_part_that_is_not_named_stays_proven(machine: Machine) -> None:
    machine.proven()
    machine.write(2)
    deployment.proven(machine.root, {"appliance": machine.parts["appliance"]}, check=False)
    assert machine.compared() == []


def test_the_releases_that_both_snapshots_refer_to_are_named(machine: Machine) -> None:
    machine.proven()
    machine.write(2)
    answer = machine.proven()
    assert answer["links"] == ["releases/1", "releases/2"]
    link = str(machine.link)
    assert answer["refers_to"] == {"proven": {link: "releases/2"}, "previous": {link: "releases/1"}}


def test_check_mode_tells_the_same_and_writes_nothing(machine: Machine) -> None:
    assert machine.proven(check=True)["changed"]
    assert not machine.root.exists()
    machine.proven()
    machine.write(2)
    assert machine.restored(check=True)["restored"] == sorted(machine.parts["appliance"])
    assert machine.seen()[2] == "releases/2"


def test_the_difference_names_paths_and_no_content(machine: Machine) -> None:
    machine.proven()
    machine.env.write_text("secret\n")
    diff = machine.restored()["diff"]
    assert str(machine.env) in diff["before"]
    assert diff["before"] != diff["after"]
    assert "secret" not in json.dumps(diff)


def test_the_snapshots_are_readable_for_root_alone(machine: Machine) -> None:
    machine.proven()
    assert machine.root.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in machine.root.iterdir()] == [0o600]


@pytest.mark.parametrize("state", ["proven", "previous"])
def test_going_back_where_nothing_was_proven_says_so(machine: Machine, state: str) -> None:
    with pytest.raises(deployment.DeploymentError, match=f"there is no {state} deployment"):
        machine.restored(state)


@pytest.mark.parametrize(
    ("text", "sentence"), [("{", "is damaged"), ('{"format": 9}', "has format 9"), ("[]", "is damaged")]
)
def test_a_file_of_snapshots_that_is_none_is_refused_with_the_way_out(
    machine: Machine, text: str, sentence: str
) -> None:
    machine.root.mkdir(parents=True)
    (machine.root / "snapshots.json").write_text(text)
    with pytest.raises(deployment.DeploymentError, match=f"{sentence}.*move it away"):
        machine.compared()


def test_a_directory_is_no_part(machine: Machine) -> None:
    with pytest.raises(deployment.DeploymentError, match="neither a file nor a link"):
        deployment.proven(machine.root, {"x": [str(machine.disk)]}, check=False)


def test_data_is_no_part(machine: Machine) -> None:
    machine.env.write_bytes(bytes(deployment.FILE_BYTES_MAX + 1))
    with pytest.raises(deployment.DeploymentError, match="name the link"):
        machine.proven()


# ------------------------------------------------------------------------------------------------- cut at any point

CALLS = ("mkdir", "open", "fchown", "fchmod", "fsync", "replace", "unlink", "symlink", "lchown", "rename")


class Cut(BaseException):
    """As a kill: nothing in the module may catch it."""


@pytest.fixture
def cut_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """cut_at(n) ends the module at its n-th call that changes the disk; `left` tells how many are to come."""
    left = [10**6]

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def begin(calls: int) -> list[int]:
        left[0] = calls
        return left

    yield begin
    left[0] = 10**6


def _cut_everywhere(cut_at: Any, act: Any) -> Iterator[int]:
    """Run `act` again and again, cut after 0, 1, 2, … calls, until it is through."""
    for calls in range(1000):
        cut_at(calls)
        try:
            act()
        except Cut:
            cut_at(10**6)
            yield calls
        else:
            cut_at(10**6)
            assert calls > 3, "nothing was cut"
            return


def test_a_snapshot_that_is_cut_leaves_the_old_pair_or_the_new(machine: Machine, cut_at: Any) -> None:
    machine.proven()
    machine.write(2)
    machine.proven()
    file = machine.root / "snapshots.json"
    old = file.read_text()
    machine.write(3)
    for _ in _cut_everywhere(cut_at, machine.proven):
        if file.read_text() != old:  # the rename was the last but one call
            assert json.loads(file.read_text())["previous"] == json.loads(old)["proven"]
            file.write_text(old)
    assert file.read_text() != old
    assert [path.name for path in machine.root.iterdir()] == ["snapshots.json"]


def test_going_back_that_is_cut_is_finished_by_the_next_and_leaves_nothing_lying(machine: Machine, cut_at: Any) -> None:
    machine.proven()
    names = sorted(path.name for path in machine.disk.iterdir())
    machine.write(2)
    for _ in _cut_everywhere(cut_at, machine.restored):
        assert machine.seen()[0] in ("unit 1\n", "unit 2\n")
        assert machine.seen()[1] in ("N_CTX=1\n", "N_CTX=2\n")
        assert machine.seen()[2] in ("releases/1", "releases/2")
    assert machine.seen() == ("unit 1\n", "N_CTX=1\n", "releases/1")
    assert sorted(path.name for path in machine.disk.iterdir()) == names


# ------------------------------------------------------------------------------------------------- as ansible runs it


def _ansible(machine: Machine, *words: str) -> str:
    """What ansible says of one call of the module on this machine."""
    arguments = {"root": str(machine.root), "parts": machine.parts} | dict(
        word.split("=") for word in words if "=" in word
    )
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "adhoc", "localhost", "-m", "deployment", "-a", json.dumps(arguments)]
        + ["-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
        + [word for word in words if "=" not in word],
        env=os.environ | {"ANSIBLE_CONFIG": str(SOURCE.parent.parent.parent / "ansible.cfg")},
        cwd=SOURCE.parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_ansible_runs_it_and_shows_its_refusals_as_sentences(machine: Machine) -> None:
    assert "there is no proven deployment" in _ansible(machine, "state=restored")
    assert "CHANGED" in _ansible(machine, "state=proven")
    machine.write(2)
    told = _ansible(machine, "state=restored", "--check", "--diff")
    assert f"-{machine.link}: -> releases/2" in told
    assert f"+{machine.link}: -> releases/1" in told
    assert "SUCCESS" in _ansible(machine, "state=compared")
