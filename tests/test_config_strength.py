"""Where a setting's value comes from when several places give one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from appliance.config import SETTINGS, Config
from appliance.sources import ConfigError, load

PLACES = ["profile", ".env", "environment"]  # the weakest first


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    return {"profile": tmp_path / "node.env", ".env": tmp_path / ".env"}


def test_it_takes_every_default_when_nothing_is_given():
    config, sources = load(None, {}, None)
    assert config == Config()
    assert sources == dict.fromkeys(SETTINGS, "default")


@pytest.mark.parametrize("given", [c for n in (1, 2, 3) for c in itertools.combinations(PLACES, n)])
def test_the_strongest_place_wins(places, given):
    ports = {"profile": "1111", ".env": "2222", "environment": "3333"}
    for place in set(given) - {"environment"}:
        places[place].write_text(f"PORT={ports[place]}\n")
    profile = places["profile"] if "profile" in given else None
    environ = {"PORT": ports["environment"]} if "environment" in given else {}
    config, sources = load(profile, environ, places[".env"])
    named = {"profile": f"profile {profile}", ".env": str(places[".env"]), "environment": "environment"}
    assert config.port == int(ports[given[-1]])
    assert sources["PORT"] == named[given[-1]]


def test_places_add_up_setting_by_setting(places):
    places["profile"].write_text("PORT=1111\nN_CTX=2048\n")
    places[".env"].write_text("N_THREADS=2\nPORT=2222\n")
    config, sources = load(places["profile"], {"MAX_TOKENS": "7"}, places[".env"])
    assert (config.port, config.n_ctx, config.n_threads, config.max_tokens) == (2222, 2048, 2, 7)
    assert sources["N_CTX"].startswith("profile")


def test_it_reads_the_environment_of_the_process_and_its_env_file_by_itself(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("N_BATCH=64\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "8123")
    config, sources = load()
    assert (config.port, config.n_batch) == (8123, 64)
    assert (sources["PORT"], sources["N_BATCH"]) == ("environment", ".env")


def test_a_value_that_is_overruled_is_not_judged(places):
    places["profile"].write_text("PORT=none\n")
    assert load(places["profile"], {"PORT": "8001"}, None).config.port == 8001


def test_an_env_file_that_is_missing_or_a_directory_is_none(tmp_path):
    assert load(None, {}, tmp_path / "nowhere" / ".env").config == Config()
    assert load(None, {}, tmp_path).config == Config()


def test_the_environment_may_hold_any_other_name():
    assert load(None, {"MAX_TOKEN": "9", "PATH": "/bin", "port": "1"}, None).config == Config()


def test_the_stronger_of_pepper_and_pepper_file_counts(places):
    places["profile"].write_text("API_KEY_PEPPER_FILE=/etc/appliance/pepper\n")
    config, sources = load(places["profile"], {"API_KEY_PEPPER": "0123456789abcdef"}, None)
    assert (config.api_key_pepper, config.api_key_pepper_file) == ("0123456789abcdef", None)
    assert sources["API_KEY_PEPPER_FILE"] == "default"

    places["profile"].write_text("API_KEY_PEPPER=0123456789abcdef\n")
    config, _ = load(places["profile"], {"API_KEY_PEPPER_FILE": "/run/pepper"}, None)
    assert (config.api_key_pepper, config.api_key_pepper_file) == (None, "/run/pepper")


def test_pepper_and_pepper_file_from_one_place_are_a_contradiction():
    both = {"API_KEY_PEPPER": "0123456789abcdef", "API_KEY_PEPPER_FILE": "/run/pepper"}
    with pytest.raises(ConfigError, match="API_KEY_PEPPER_FILE is given too \\(environment\\)"):
        load(None, both, None)


def test_an_empty_pepper_file_is_none():
    both = {"API_KEY_PEPPER": "0123456789abcdef", "API_KEY_PEPPER_FILE": ""}
    assert load(None, both, None).config.api_key_pepper_file is None
