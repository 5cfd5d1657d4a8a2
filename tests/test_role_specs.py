"""The contract of every role: what meta/argument_specs.yml says is what defaults and templates do."""

from __future__ import annotations

import re
import sys

import pytest
import roles

sys.path.insert(0, str(roles.ROOT / "ansible"))
import role_docs

UNITS = re.compile(
    r"\b(bytes|KiB|MiB|GiB|GB|seconds|minutes|hours|days|tokens|threads|requests|keys|port|percent|tries|runs|cores"
    r"|releases|weight|priority|MHz|files|lines|nodes)\b",
    re.IGNORECASE,
)
OPTIONS = [(role, name) for role in roles.names() for name in roles.options(role)]
TEMPLATES = [(role, template) for role in roles.names() for template in roles.templates(role)]


@pytest.mark.parametrize("role", roles.names())
def test_a_role_has_a_contract(role):
    assert (roles.ROLES / role / "meta" / "argument_specs.yml").is_file()


@pytest.mark.parametrize("role", roles.names())
def test_every_default_is_in_the_contract_and_the_other_way_round(role):
    contract = {name: option["default"] for name, option in roles.options(role).items() if "default" in option}
    assert contract == roles.defaults(role)


@pytest.mark.parametrize(("role", "name"), OPTIONS)
def test_a_variable_has_a_default_or_is_required(role, name):
    option = roles.options(role)[name]
    assert ("default" in option) != bool(option.get("required"))


@pytest.mark.parametrize(("role", "name"), OPTIONS)
def test_a_variable_carries_its_role_and_says_what_it_means(role, name):
    option = roles.options(role)[name]
    assert name.startswith((f"{role}_", "fleet_"))
    assert option["type"] in {"str", "int", "float", "bool", "list", "dict", "path", "raw"}
    assert option["type"] != "list" or "elements" in option
    assert role_docs._text(option["description"]).endswith((".", ")"))


@pytest.mark.parametrize(("role", "name"), OPTIONS)
def test_a_number_says_its_unit(role, name):
    option = roles.options(role)[name]
    if option["type"] in {"int", "float"}:
        assert UNITS.search(role_docs._text(option["description"])), f"{name}: which unit?"


@pytest.mark.parametrize("role", roles.names())
def test_the_readme_lists_the_variables(role):
    folder = roles.ROLES / role
    assert (folder / "README.md").read_text() == role_docs.with_variables(folder), "run: make docs"


@pytest.mark.parametrize(("role", "template"), TEMPLATES)
def test_a_template_renders_with_the_defaults_of_its_role_and_of_the_inventory(role, template):
    text = roles.render(role, template)
    assert "{{" not in text
    assert "Ansible managed" in "".join(text.splitlines(keepends=True)[:3])


@pytest.mark.parametrize(("role", "template"), TEMPLATES)
def test_a_template_says_that_ansible_owns_the_file(role, template):
    first = (roles.ROLES / role / "templates" / template).read_text().splitlines()[:2]
    assert "{{ ansible_managed | comment }}" in first
