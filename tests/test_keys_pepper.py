"""Where the pepper comes from, and that it is never lost, halved or replaced in silence."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.keyfile import KeyStoreError
from appliance.keys import KeyStore
from appliance.pepper import PepperError, obtain

LONG_ENOUGH = "sixteen bytes ok"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "api_keys.db"


def test_it_takes_the_variable(db: Path) -> None:
    assert obtain(LONG_ENOUGH, None, db) == LONG_ENOUGH.encode()
    assert not Path(f"{db}.pepper").exists()


def test_it_takes_the_file_without_the_white_space_around(db: Path, tmp_path: Path) -> None:
    file = tmp_path / "pepper"
    file.write_text(f" {LONG_ENOUGH}\n")
    file.chmod(0o400)
    assert obtain(None, str(file), db) == obtain(f"{LONG_ENOUGH}\n", None, db) == LONG_ENOUGH.encode()


def test_it_refuses_both(db: Path) -> None:
    with pytest.raises(PepperError, match="API_KEY_PEPPER and API_KEY_PEPPER_FILE are both given"):
        obtain(LONG_ENOUGH, "/some/file", db)


@pytest.mark.parametrize("value", ["", "   \n", "fifteen bytes !", "fifteen bytes !" + " " * 10, "x" * 5000])
def test_it_refuses_a_pepper_that_is_too_short_or_no_pepper_at_all(db: Path, tmp_path: Path, value: str) -> None:
    file = tmp_path / "pepper"
    file.write_text(value)
    file.chmod(0o600)
    for given in ((value, None), (None, str(file))):
        with pytest.raises(PepperError, match="openssl rand -hex 32") as caught:
            obtain(*given, db)
        assert "fifteen" not in str(caught.value)


def test_it_names_a_file_that_cannot_be_read(db: Path, tmp_path: Path) -> None:
    with pytest.raises(PepperError, match=r"API_KEY_PEPPER_FILE .*/none cannot be read: No such file"):
        obtain(None, str(tmp_path / "none"), db)
    with pytest.raises(PepperError, match="cannot be read: Is a directory"):
        obtain(None, str(tmp_path), db)


def test_it_warns_of_a_file_that_everybody_can_read(db: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "pepper"
    file.write_text(LONG_ENOUGH)
    file.chmod(0o644)
    obtain(None, str(file), db)
    assert "can be read by every user of this machine (mode 0644)" in caplog.text


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_it_is_silent_about_a_file_as_systemd_hands_out_a_credential(
    db: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    file = tmp_path / "pepper"
    file.write_text(LONG_ENOUGH)
    file.chmod(mode)
    obtain(None, str(file), db)
    assert caplog.text == ""


def test_it_makes_one_at_the_first_start_and_says_so_once(db: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = obtain(None, None, db)
    assert obtain(None, None, db) == made
    assert len(made) == 64
    (record,) = caplog.records
    assert f"{db}.pepper" in record.getMessage()
    assert made.decode() not in caplog.text


def test_the_one_it_makes_is_private_and_leaves_nothing_beside(db: Path) -> None:
    obtain(None, None, db)
    (file,) = db.parent.iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("api_keys.db.pepper", 0o600)


def test_two_first_starts_at_once_agree_on_the_first_ones(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def be_late(draft: str, path: Path) -> None:
        path.write_text("the pepper of the other process\n")
        link(draft, path)

    monkeypatch.setattr("os.link", be_late)
    assert obtain(None, None, db) == b"the pepper of the other process"


def test_a_lost_pepper_is_not_replaced_in_silence(db: Path) -> None:
    store = KeyStore(db, obtain(None, None, db))
    store.issue("alice")
    store.close()
    pepper = Path(f"{db}.pepper")
    pepper.rename(pepper.with_suffix(".away"))
    with pytest.raises(PepperError, match=r"holds keys, but their pepper .* is missing.* bring the file back"):
        obtain(None, None, db)
    assert not pepper.exists()


def test_a_new_one_is_made_beside_a_database_without_keys(db: Path) -> None:
    KeyStore(db, obtain(None, None, db)).close()
    Path(f"{db}.pepper").unlink()
    KeyStore(db, obtain(None, None, db)).close()


def test_it_says_where_a_pepper_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(PepperError, match=r"cannot be made: No such file or directory\. Let API_KEYS_DB name"):
        obtain(None, None, tmp_path / "nowhere" / "api_keys.db")


def test_it_does_not_take_another_file_for_a_database(db: Path) -> None:
    db.write_bytes(b"this is not a database\n" * 100)
    with pytest.raises(KeyStoreError, match="file is not a database"):
        obtain(None, None, db)


DIES_AT = """
import os, signal, sys
from pathlib import Path
from appliance.pepper import obtain

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, sys.argv[2], die)
obtain(None, None, Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("step", "exists"), [("fdopen", False), ("fsync", False), ("link", False), ("unlink", True)])
def test_kill_9_leaves_a_whole_pepper_or_none(db: Path, step: str, exists: bool) -> None:
    ended = subprocess.run([sys.executable, "-c", DIES_AT, str(db), step], check=False)
    assert ended.returncode == -9
    assert Path(f"{db}.pepper").exists() is exists
    assert len(obtain(None, None, db)) == 64
