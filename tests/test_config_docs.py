"""The table in the documentation and the profile of a Pi 5 agree with the settings themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.commands.config import with_table
from appliance.config import SETTINGS, Config
from appliance.sources import load

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "configuration.md"
PI5 = ROOT / "appliance" / "profiles" / "pi5-fast.env"


def test_the_table_in_the_documentation_is_current():
    page = PAGE.read_text()
    assert page == with_table(page), "run: appliance config docs --write docs/configuration.md"


@pytest.mark.parametrize("row", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_has_a_meaning_and_says_what_is_allowed(row):
    assert row.meaning.endswith(".")
    assert row.allowed
    assert not any("|" in cell or "\n" in cell for cell in (row.meaning, row.allowed, row.unit))


@pytest.mark.parametrize("row", SETTINGS.values(), ids=SETTINGS)
def test_a_setting_in_seconds_says_so_in_its_name(row):
    assert (row.unit == "seconds") == row.name.endswith("_S")


def test_the_profile_of_a_pi_5_equals_the_defaults():
    config, sources = load(PI5, {}, None)
    assert config == Config()
    silent = {name for name, source in sources.items() if source == "default"}
    assert silent == {"API_KEY_PEPPER", "API_KEY_PEPPER_FILE"}


def test_the_profile_of_a_pi_5_gives_a_reason_for_what_it_sets():
    paragraphs = PI5.read_text().strip().split("\n\n")
    unexplained = [paragraph for paragraph in paragraphs if not paragraph.startswith("#")]
    assert unexplained == ["LOG_LEVEL=info"]
