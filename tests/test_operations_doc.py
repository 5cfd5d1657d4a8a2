"""docs/operations.md names nothing that is not there: playbooks, files, variables, tags, commands and their options."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import roles
import yaml

from appliance.__main__ import main

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs/operations.md").read_text()
CODE = "\n".join(re.findall(r"```\w*\n(.*?)```", DOC, re.DOTALL) + re.findall(r"`([^`\n]+)`", DOC))
PLAYBOOKS = sorted((ROOT / "ansible").glob("*.yml"))
ROLE_VARIABLE = re.compile(rf"\b((?:{'|'.join(roles.names())})_[a-z0-9_]+)\b")
# What the inventory and the playbooks take beside the roles' variables.
OTHER_VARIABLE = re.compile(r"\b((?:vault|fleet|upgrade|keep)_[a-z]+|confirm|tuned_profile)\b")


def found(pattern: str) -> list[str]:
    return sorted(set(re.findall(pattern, CODE)))


def commands() -> list[list[str]]:
    """Each `pi-llm …` and `appliance …` that is to be typed, as words."""
    typed = re.findall(r"(?:sudo pi-llm|^appliance|`appliance) ([a-z][^`'\"|;>#\n]*)", DOC, re.MULTILINE)
    return [words.split() for words in sorted(set(typed))]


def test_every_playbook_has_its_place() -> None:
    assert [path.name for path in PLAYBOOKS if f"ansible/{path.name}" not in CODE] == []


@pytest.mark.parametrize("path", found(r"(?:^|[\s@])((?:ansible|inventory|docs|bench)/[\w./-]*\w)"))
def test_a_file_of_the_project_exists(path: str) -> None:
    made_by_people = ("inventory/host_vars/", "inventory/group_vars/nodes/")
    assert (ROOT / path).exists() or path.startswith(made_by_people)


@pytest.mark.parametrize("variable", sorted(set(ROLE_VARIABLE.findall(CODE))))
def test_a_variable_is_in_its_roles_contract(variable: str) -> None:
    assert any(variable in roles.options(role) for role in roles.names())


@pytest.mark.parametrize("variable", sorted(set(OTHER_VARIABLE.findall(CODE))))
def test_another_variable_is_read_somewhere(variable: str) -> None:
    sources = [*(ROOT / "ansible").rglob("*.yml"), *(ROOT / "inventory").rglob("*.yml")]
    assert any(re.search(rf"{{{{.*\b{variable}\b|that:.*\b{variable}\b", path.read_text()) for path in sources)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_exists_with_its_options(words: list[str]) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"no command {name}"
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("tag", found(r"--tags[ =]([\w,]+)"))
def test_a_tag_is_one_of_site_yml(tag: str) -> None:
    plays = yaml.safe_load((ROOT / "ansible/site.yml").read_text())
    known = {name for play in plays for task in play.get("tasks", []) for name in task["tags"]}
    assert set(tag.split(",")) <= known


@pytest.mark.parametrize("title", ["A node is unhealthy", "pepper"])
def test_what_messages_refer_to_has_a_heading(title: str) -> None:
    assert any(title in heading for heading in re.findall(r"^#+ (.*)$", DOC, re.MULTILINE))
