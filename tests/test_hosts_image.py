"""What hosts boot from is whole, or not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.hosts import image
from tests.hosts.machine import Mirror, Refused

MIRROR = Mirror("http://one.example/debian", None)
Run = Callable[[Sequence[str | Path]], str]


def debootstrap(dies_at: str | None) -> Run:
    """A machine whose commands leave what they would leave, up to the one that dies."""

    def run(command: Sequence[str | Path]) -> str:
        if command[0] == "debootstrap":
            Path(command[4], "bin").mkdir(parents=True)
        if command[0] == "tar":
            Path(command[command.index("-cf") + 1]).write_text("half")
        if command[0] == dies_at:
            raise Refused("died")
        return ""

    return run


@pytest.mark.parametrize("dies_at", ["debootstrap", "chroot", "tar"])
def test_an_interrupted_build_is_not_taken_for_a_finished_one(
    dies_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "STATE", tmp_path)
    monkeypatch.setattr(image, "run", debootstrap(dies_at))
    with pytest.raises(Refused):
        image.base("trixie", MIRROR)
    assert list(tmp_path.glob("base-*.tar")) == []
    monkeypatch.setattr(image, "run", debootstrap(None))
    assert image.base("trixie", MIRROR).exists()


def test_another_mirror_makes_another_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "STATE", tmp_path)
    monkeypatch.setattr(image, "run", debootstrap(None))
    old = image.base("trixie", MIRROR)
    assert image.base("trixie", Mirror("http://two.example/debian", None)) != old
    assert not old.exists()


def test_a_host_fetches_from_this_machines_mirror() -> None:
    text = image.sources_list("trixie", Mirror("http://one.example/debian", "http://two.example/security"))
    assert "URIs: http://one.example/debian\nSuites: trixie trixie-updates\n" in text
    assert "URIs: http://two.example/security\nSuites: trixie-security\n" in text


def test_a_fresh_host_has_nothing_that_the_roles_must_install() -> None:
    assert not {"zstd", "python3-venv"} & set(image.PACKAGES.split(","))
