"""The table of knobs agrees with everything that uses a knob's name."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import roles
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import SETTINGS
from appliance.sources import load
from bench import knobs

KNOBS = list(knobs.KNOBS.values())
SETTINGS_AMONG_THEM = [knob for knob in KNOBS if knob.name in SETTINGS]
CROSSING = {"MAX_TOKENS": {"N_CTX": "131072"}, "N_CTX": {"MAX_TOKENS": "1"}}  # so that one value at a time is judged
each_knob = pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
each_setting = pytest.mark.parametrize("knob", SETTINGS_AMONG_THEM, ids=lambda knob: knob.name)


def values(knob: knobs.Knob) -> st.SearchStrategy[Any]:
    if knob.values["type"] == "integer":
        return st.integers(knob.values["minimum"], knob.values["maximum"])
    return st.from_regex(knob.values["pattern"], fullmatch=True)


@pytest.mark.parametrize("path", knobs.written(), ids=lambda path: path.name)
def test_the_generated_file_is_current(path):
    assert path.read_text() == knobs.written()[path], "run: make docs"


def test_the_schema_is_one():
    schema = json.loads(knobs.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)


@each_setting
@given(data=st.data())
def test_what_the_schema_allows_the_appliance_takes(knob, data):
    value = data.draw(values(knob))
    config, sources = load(None, {**CROSSING.get(knob.name, {}), knob.name: str(value)}, None)
    assert getattr(config, knob.field) == value
    assert sources[knob.name] == "environment"


@each_setting
def test_a_number_may_be_all_that_the_setting_may_be(knob):
    if knob.values["type"] == "integer":
        assert knob.allowed == SETTINGS[knob.name].allowed


@each_knob
def test_a_knob_is_a_variable_of_a_role_with_the_same_default(knob):
    role = knob.role_variable.partition("_")[0]
    assert roles.defaults(role)[knob.role_variable] == knob.default
    assert roles.options(role)[knob.role_variable]["default"] == knob.default


@each_knob
def test_the_role_takes_what_the_schema_allows(knob):
    role = knob.role_variable.partition("_")[0]
    choices = roles.options(role)[knob.role_variable].get("choices")
    assert choices is None or set(knob.values["enum"]) <= set(choices)


@each_knob
def test_the_default_is_allowed(knob):
    jsonschema.validate(knob.default, knob.schema(), jsonschema.Draft202012Validator)


@each_knob
def test_a_knob_says_what_it_means_and_what_is_allowed(knob):
    assert knob.meaning.endswith(".")
    assert knob.allowed


def test_the_links_between_roles_repeat_the_roles_defaults():
    links = roles._load(roles.INVENTORY / "group_vars" / "all" / "links.yml")
    literal = {name: value for name, value in links.items() if "{{" not in str(value)}
    assert literal == {name: roles.defaults(name.partition("_")[0])[name] for name in literal}
