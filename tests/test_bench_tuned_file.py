"""tuned.yml is always the old profile or the new one, never a person's loss, and always what Ansible reads it as."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bench import wholefile
from bench.inventory import tuned_file, tuned_profile
from bench.inventory.tuned_file import NotAProfile, ProfileError
from bench.inventory.tuned_profile import Against, Measured, Provenance, TunedProfile

FACTS = {
    "board": {"name": "Raspberry Pi 5 Model B Rev 1.1"},
    "throttling": {"bits": "0x0"},
    "engine": {"version": "0.34.4"},
    "model": {"name": "qwen2.5:3b", "digest": "357c53fb"},
    "appliance": {"version": "0.1.0"},
}
FIRST = TunedProfile(
    env={"N_CTX": 1024, "N_THREADS": 4, "OLLAMA_KEEP_ALIVE": "30m", "OLLAMA_FLASH_ATTENTION": "on"},
    measured={
        "decode_tokens_per_s": Measured(
            median=5.3123456, ci95=(5.27, 5.36), n=12, against=Against(settings="the defaults", change=0.12)
        )
    },
    provenance=Provenance.of("20260131T120000Z-tune-0a1b2c", "2026-01-31T12:00:00Z", FACTS),
)
SECOND = msgspec.structs.replace(FIRST, env={"N_CTX": 2048, "N_BATCH": 256})
THIRD = msgspec.structs.replace(FIRST, env={"N_CTX": 512})
NODE = "pi1"


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return tuned_file.path_of(tmp_path, NODE)


def env_of(inventory: Path) -> dict[str, Any] | None:
    found = tuned_file.read(inventory, NODE)
    return None if found is None else found.env


def names(tuned: Path) -> set[str]:
    return {path.name for path in tuned.parent.iterdir()}


# --- what is written


def test_what_is_written_is_read_back_by_ansibles_parser(tmp_path: Path, tuned: Path) -> None:
    assert tuned_file.write(tmp_path, NODE, FIRST) == tuned
    found = yaml.safe_load(tuned.read_text())["tuned_profile"]
    assert found["env"] == FIRST.env
    assert found["measured"]["decode_tokens_per_s"]["median"] == 5.31235
    assert found["provenance"]["at"] == "2026-01-31T12:00:00Z"
    assert found["provenance"]["board"] == "Raspberry Pi 5 Model B Rev 1.1"
    assert names(tuned) == {"tuned.yml"}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    figure = Measured(median=5.5, ci95=(5.25, 1e-7), n=12)
    exact = msgspec.structs.replace(FIRST, measured={"decode_tokens_per_s": figure})
    tuned_file.write(tmp_path, NODE, exact)
    assert tuned_file.read(tmp_path, NODE) == exact


@pytest.mark.parametrize("text", ["on", "no", "12:30:00", "2026-01-31", "1e3", "0x0", "~", "", "a: b", "ü — '\"#"])
def test_a_text_that_yaml_takes_for_something_else_stays_a_text(tmp_path: Path, text: str) -> None:
    tuned_file.write(tmp_path, NODE, msgspec.structs.replace(FIRST, provenance=Provenance(run="r", at="a", board=text)))
    found = tuned_file.read(tmp_path, NODE)
    assert found is not None
    assert found.provenance.board == text


def test_a_header_says_who_writes_it_and_how_to_go_back_once(tmp_path: Path, tuned: Path) -> None:
    for each in (FIRST, SECOND, THIRD):
        tuned_file.write(tmp_path, NODE, each)
    text = tuned.read_text()
    assert text.count("bench tune") == text.count("mv .tuned.previous.yml tuned.yml") == 1
    assert text.startswith("# Measured, chosen and written by `bench tune`")


def test_comments_and_variables_of_people_are_kept(tmp_path: Path, tuned: Path) -> None:
    tuned_file.write(tmp_path, NODE, FIRST)
    text = tuned.read_text().replace("N_CTX: 1024", "N_CTX: 1024  # for the long prompts")
    text = text.replace("    N_THREADS", "    # four cores\n    N_THREADS") + "# the end\nmine: yes  # too\n"
    tuned.write_text(text)
    tuned_file.write(tmp_path, NODE, SECOND)
    assert env_of(tmp_path) == SECOND.env
    new = tuned.read_text()
    for comment in ("# for the long prompts", "# four cores", "# the end", "# too"):
        assert new.count(comment) == 1, comment
    assert yaml.safe_load(new)["mine"] is True


def test_the_same_profile_again_touches_nothing(tmp_path: Path, tuned: Path) -> None:
    tuned_file.write(tmp_path, NODE, FIRST)
    tuned_file.write(tmp_path, NODE, SECOND)
    before = {path: path.stat().st_mtime_ns for path in tuned.parent.iterdir()}
    tuned_file.write(tmp_path, NODE, SECOND)
    assert {path: path.stat().st_mtime_ns for path in tuned.parent.iterdir()} == before
    assert not str(tuned_file.change(tmp_path, NODE, SECOND))


def test_a_dry_run_shows_the_difference_and_writes_nothing(tmp_path: Path, tuned: Path) -> None:
    new = str(tuned_file.change(tmp_path, NODE, FIRST))
    assert new.startswith("--- /dev/null\n")
    assert not tuned.exists()
    tuned_file.write(tmp_path, NODE, FIRST)
    difference = str(tuned_file.change(tmp_path, NODE, SECOND))
    assert "-    N_CTX: 1024\n" in difference
    assert "+    N_CTX: 2048\n" in difference
    assert env_of(tmp_path) == FIRST.env


def test_other_files_of_the_node_are_not_touched(tmp_path: Path, tuned: Path) -> None:
    mine = tuned.with_name("mine.yml")
    mine.parent.mkdir(parents=True)
    mine.write_text("appliance_n_ctx: 4096\n")
    before = mine.stat().st_mtime_ns
    tuned_file.write(tmp_path, NODE, FIRST)
    tuned_file.write(tmp_path, NODE, SECOND)
    tuned_file.restore(tmp_path, NODE)
    assert (mine.read_text(), mine.stat().st_mtime_ns) == ("appliance_n_ctx: 4096\n", before)


def test_a_replaced_file_keeps_its_mode(tmp_path: Path, tuned: Path) -> None:
    tuned_file.write(tmp_path, NODE, FIRST)
    assert tuned.stat().st_mode & 0o777 == 0o644
    tuned.chmod(0o640)
    tuned_file.write(tmp_path, NODE, SECOND)
    assert tuned.stat().st_mode & 0o777 == 0o640


# --- what is refused


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({}, "env"),
        ({"N_CTX": 64}, "N_CTX is 64"),
        ({"N_CTXX": 1}, "unknown"),
        ({"N_CTX": 128, "MAX_TOKENS": 128}, "less"),
    ],
)
def test_a_profile_that_no_play_would_take_is_not_written(tmp_path: Path, env: dict[str, Any], word: str) -> None:
    with pytest.raises(ProfileError, match=word):
        tuned_file.write(tmp_path, NODE, msgspec.structs.replace(FIRST, env=env))
    assert not (tmp_path / "host_vars").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_is_not_written(tmp_path: Path, value: float) -> None:
    figure = Measured(median=5.5, ci95=(5.0, value), n=12)
    with pytest.raises(ProfileError, match=r"tuned_profile\.measured\.itl_s\.ci95\.1 is not a finite number"):
        tuned_file.write(tmp_path, NODE, msgspec.structs.replace(FIRST, measured={"itl_s": figure}))


NONSENSE = [
    "tuned_profile: {env: [",
    "just words",
    "- a\n- list\n",
    "tuned_profile: 7",
    "tuned_profile: {format: 1}",
    "tuned_profile: !!python/object:os.system {}",
    "a: &x [*x",
    "\0\x01\x02",
    "{" * 10_000,
    "tuned_profile: {format: 1, env: {OLLAMA_FLASH_ATTENTION: off}, measured: {}, provenance: {run: r, at: a}}",
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_named_and_replaced_only_by_force(tmp_path: Path, tuned: Path, nonsense: str) -> None:
    tuned_file.write(tmp_path, NODE, FIRST)
    tuned_file.write(tmp_path, NODE, SECOND)
    tuned.write_text(nonsense)
    for call in (tuned_file.write, tuned_file.change):
        with pytest.raises(NotAProfile, match=rf"{tuned}.*edited by hand.*--force") as caught:
            call(tmp_path, NODE, THIRD)
        assert len(str(caught.value)) < 1000
    assert tuned.read_text() == nonsense
    tuned_file.write(tmp_path, NODE, THIRD, force=True)
    assert env_of(tmp_path) == THIRD.env
    assert tuned.with_name(tuned_file.REJECTED).read_text() == nonsense
    restored = tuned_file.restore(tmp_path, NODE)
    assert restored is not None
    assert restored.env == FIRST.env  # the last that was one


@pytest.mark.parametrize("nothing", ["", "# only a comment\n", "---\n", "mine: 1\n", "tuned_profile:\n"])
def test_a_file_without_a_profile_is_no_nonsense(tmp_path: Path, tuned: Path, nothing: str) -> None:
    tuned.parent.mkdir(parents=True)
    tuned.write_text(nothing)
    assert env_of(tmp_path) is None
    tuned_file.write(tmp_path, NODE, FIRST)
    assert env_of(tmp_path) == FIRST.env
    assert ("# only a comment" in tuned.read_text()) == ("comment" in nothing)


@pytest.mark.parametrize("file", ["pi1.yml", "pi1.yaml", "pi1.json", "pi1"])
def test_a_persons_file_that_ansible_would_then_overlook_is_an_error(tmp_path: Path, file: str) -> None:
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars" / file).write_text("appliance_n_ctx: 4096\n")
    with pytest.raises(ProfileError, match=rf"{file} would no longer be read.*mine\.yml"):
        tuned_file.write(tmp_path, NODE, FIRST)
    assert (tmp_path / "host_vars" / file).read_text() == "appliance_n_ctx: 4096\n"


@pytest.mark.parametrize("node", ["../pi1", "a/b", "", ".", "..", ".hidden", "pi\n1"])
def test_a_node_whose_name_is_a_path_has_no_profile(tmp_path: Path, node: str) -> None:
    with pytest.raises(ProfileError, match="cannot have a profile"):
        tuned_file.write(tmp_path / "inventory", node, FIRST)
    assert list(tmp_path.iterdir()) == []


# --- back


def test_going_back_and_back_again(tmp_path: Path) -> None:
    for each in (FIRST, SECOND, THIRD):
        tuned_file.write(tmp_path, NODE, each)
    for expected in (SECOND, THIRD, SECOND):
        restored = tuned_file.restore(tmp_path, NODE)
        assert restored is not None
        assert restored.env == env_of(tmp_path) == expected.env


def test_the_same_settings_measured_again_keep_what_was_before_them(tmp_path: Path) -> None:
    again = msgspec.structs.replace(SECOND, provenance=Provenance(run="another", at="2026-02-01T12:00:00Z"))
    for each in (FIRST, SECOND, again):
        tuned_file.write(tmp_path, NODE, each)
    standing, previous = tuned_file.read(tmp_path, NODE), tuned_file.read_previous(tmp_path, NODE)
    assert standing is not None
    assert previous is not None
    assert (standing.provenance.run, standing.env, previous.env) == ("another", SECOND.env, FIRST.env)


def test_the_first_profile_goes_back_to_the_defaults(tmp_path: Path, tuned: Path) -> None:
    tuned_file.write(tmp_path, NODE, FIRST)
    assert tuned_file.restore(tmp_path, NODE) is None
    assert not tuned.exists()
    assert tuned_file.restore(tmp_path, NODE) is not None
    assert env_of(tmp_path) == FIRST.env


def test_a_profile_after_the_defaults_goes_back_to_the_defaults(tmp_path: Path, tuned: Path) -> None:
    tuned_file.write(tmp_path, NODE, FIRST)
    tuned.unlink()
    tuned_file.write(tmp_path, NODE, SECOND)
    assert tuned_file.restore(tmp_path, NODE) is None


def test_without_another_profile_there_is_nothing_to_go_back_to(tmp_path: Path, tuned: Path) -> None:
    with pytest.raises(ProfileError, match="no other profile"):
        tuned_file.restore(tmp_path, NODE)
    tuned_file.write(tmp_path, NODE, FIRST)
    tuned_file.write(tmp_path, NODE, SECOND)
    tuned.with_name(tuned_file.PREVIOUS).write_text("tuned_profile: 7")
    with pytest.raises(NotAProfile, match="previous"):
        tuned_file.restore(tmp_path, NODE)
    assert env_of(tmp_path) == SECOND.env


def test_ansible_reads_the_profile_and_neither_what_lies_beside_it_nor_half_of_one(tmp_path: Path, tuned: Path) -> None:
    (tmp_path / "hosts.yml").write_text("nodes: {hosts: {pi1: , pi2: }}\n")
    tuned_file.write(tmp_path, NODE, FIRST)
    tuned.write_text(tuned.read_text() + "mine: 5\n")
    tuned_file.write(tmp_path, NODE, SECOND)
    previous = tuned.with_name(tuned_file.PREVIOUS)
    previous.write_text(previous.read_text() + "leaked: 1\n")
    tuned.with_name(tuned_file.REJECTED).write_text("rejected: 1\n")
    tuned.with_name(".tuned.yml.4711.part").write_text("half: [")
    for source in (tmp_path / "hosts.yml", tmp_path):
        command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(source), "--list"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        hosts = json.loads(told.stdout)["_meta"]["hostvars"]
        assert set(hosts["pi1"]) == {"tuned_profile", "mine"}
        assert hosts["pi1"]["tuned_profile"]["env"] == SECOND.env
        assert "pi2" not in hosts


# --- crashes and full disks

CALLS = ("open", "write", "fchmod", "fsync", "close", "replace", "unlink", "mkdir")


class Killed(BaseException):
    """As kill -9: nothing of the process happens after it."""


class Disk:
    """Lets the n-th call to the disk fail, once with a full disk or, as if killed, with all that follow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int, error: Callable[[], BaseException]) -> None:
        self.calls = 0
        self.has_failed = False
        for name in CALLS:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name), fails_at, error))

    def _failing(self, real: Any, fails_at: int, error: Callable[[], BaseException]) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            raised = error()
            if self.calls == fails_at or (self.calls > fails_at and isinstance(raised, Killed)):
                self.has_failed = True
                raise raised
            return real(*arguments, **options)

        return call


def full() -> OSError:
    return OSError(28, "No space left on device")


def every_step(
    folder: Path, prepare: Callable[[Path], object], do: Callable[[Path], object], error: Any
) -> Iterator[Path]:
    """An inventory for each call that `do` makes to the disk, after exactly that call has failed."""
    for step in range(1, 200):
        inventory = folder / str(step)
        inventory.mkdir()
        prepare(inventory)
        with pytest.MonkeyPatch.context() as patched:
            disk = Disk(patched, step, error)
            try:
                do(inventory)
            except (Killed, ProfileError) as raised:
                assert isinstance(raised, Killed) or "cannot be written: No space left" in str(raised)  # noqa: PT017
        if not disk.has_failed:
            assert step > 10
            return
        yield inventory


def two_profiles(inventory: Path) -> None:
    tuned_file.write(inventory, NODE, FIRST)
    tuned_file.write(inventory, NODE, SECOND)


@pytest.mark.parametrize("error", [full, Killed])
def test_whatever_call_fails_while_writing_the_file_is_the_old_or_the_new_one(tmp_path: Path, error: Any) -> None:
    seen = []
    for inventory in every_step(tmp_path, two_profiles, lambda i: tuned_file.write(i, NODE, THIRD), error):
        assert env_of(inventory) in (SECOND.env, THIRD.env)
        seen.append(env_of(inventory))
        previous = tuned_file.parse((inventory / "host_vars/pi1/.tuned.previous.yml").read_bytes(), inventory)
        assert previous is not None
        assert previous.env in (FIRST.env, SECOND.env)
        if error is full:
            assert names(tuned_file.path_of(inventory, NODE)) <= {"tuned.yml", ".tuned.previous.yml"}
        tuned_file.write(inventory, NODE, THIRD)  # and the next one tidies up
        assert env_of(inventory) == THIRD.env
    assert SECOND.env in seen
    assert THIRD.env in seen


@pytest.mark.parametrize("error", [full, Killed])
def test_whatever_call_fails_at_the_first_profile_there_is_none_or_a_whole_one(tmp_path: Path, error: Any) -> None:
    for inventory in every_step(tmp_path, lambda i: None, lambda i: tuned_file.write(i, NODE, FIRST), error):
        assert env_of(inventory) in (None, FIRST.env)
        tuned_file.write(inventory, NODE, FIRST)
        tuned_file.write(inventory, NODE, SECOND)
        assert names(tuned_file.path_of(inventory, NODE)) == {"tuned.yml", ".tuned.previous.yml"}


@pytest.mark.parametrize("error", [full, Killed])
def test_whatever_call_fails_while_going_back_a_whole_profile_stands(tmp_path: Path, error: Any) -> None:
    for inventory in every_step(tmp_path, two_profiles, lambda i: tuned_file.restore(i, NODE), error):
        assert env_of(inventory) in (FIRST.env, SECOND.env)


def _write_for_ever(inventory: Path) -> None:
    while True:
        for each in (FIRST, SECOND, THIRD):
            tuned_file.write(inventory, NODE, each)


def test_a_real_kill_in_the_middle_of_writing_leaves_a_whole_profile(tmp_path: Path, tuned: Path) -> None:
    tuned_file.write(tmp_path, NODE, FIRST)
    for _ in range(5):
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path,))
        before = tuned.stat().st_ino
        writer.start()
        while tuned.stat().st_ino == before:
            pass
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        assert env_of(tmp_path) in (FIRST.env, SECOND.env, THIRD.env)
    tuned_file.write(tmp_path, NODE, msgspec.structs.replace(FIRST, env={"N_CTX": 640}))
    assert names(tuned) <= {"tuned.yml", ".tuned.previous.yml"}


def test_a_disk_that_takes_a_part_of_each_write_gets_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data)[:7]))
    wholefile.put(b"twenty bytes of text", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"twenty bytes of text"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "host_vars").write_text("a file")
    with pytest.raises(ProfileError, match="host_vars"):
        tuned_file.write(tmp_path, NODE, FIRST)


def test_what_would_refuse_every_profile_is_told_before_anything_is_measured(
    tmp_path: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned_file.write(tmp_path, NODE, FIRST)
    tuned.write_text("tuned_profile: 7")
    with pytest.raises(NotAProfile):
        tuned_file.require_replaceable(tmp_path, NODE)
    tuned_file.require_replaceable(tmp_path, NODE, force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ProfileError, match="not this user's to write"):
        tuned_file.require_replaceable(tmp_path, NODE, force=True)
    tuned_file.require_replaceable(tmp_path, NODE, force=True, is_dry=True)


# --- two at once


def test_a_second_tune_of_the_same_inventory_is_told_of_the_first(tmp_path: Path) -> None:
    with (
        tuned_file.locked(tmp_path),
        pytest.raises(ProfileError, match=rf"another bench tunes .* now \(process {os.getpid()}\); wait for its end"),
        tuned_file.locked(tmp_path),
    ):
        pass
    with tuned_file.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from bench.inventory.tuned_file import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent.parent)
    assert killed.returncode == -9
    with tuned_file.locked(tmp_path):
        pass


def test_an_inventory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ProfileError, match=r"away cannot be locked: No such file"),
        tuned_file.locked(tmp_path / "away"),
    ):
        pass


# --- stale


def facts(**parts: dict[str, Any]) -> dict[str, Any]:
    return {**FACTS, **parts}


def test_a_profile_is_fresh_while_its_node_is_the_same() -> None:
    assert tuned_profile.is_stale(FIRST, FACTS) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": {"name": "qwen2.5:3b", "digest": "0000"}}, "the model's digest was 357c53fb when"),
        ({"model": {"name": "qwen2.5:1.5b", "digest": "357c53fb"}}, "the model was qwen2.5:3b when"),
        ({"engine": {"version": "0.35.0"}}, "Ollama's version was 0.34.4 when it was measured, and is 0.35.0 now"),
        ({"board": {"name": "Raspberry Pi 4 Model B"}}, "the board was Raspberry Pi 5"),
    ],
)
def test_another_model_engine_or_board_makes_a_profile_stale(changed: dict[str, Any], reason: str) -> None:
    (sentence,) = tuned_profile.is_stale(FIRST, facts(**changed))
    assert sentence.startswith(reason)


def test_what_nobody_knows_and_what_does_not_matter_makes_nothing_stale() -> None:
    unknown = facts(engine={"version": None}, board=None, model={})
    assert tuned_profile.is_stale(FIRST, unknown) == tuned_profile.is_stale(FIRST, None) == []
    assert tuned_profile.is_stale(FIRST, facts(appliance={"version": "9"}, throttling={"bits": "0x50005"})) == []
