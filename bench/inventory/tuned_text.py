"""The text of tuned.yml: YAML that Ansible reads back as it was meant, with the comments that people put there.

Pure. Ansible reads with PyYAML, which is YAML 1.1; ruamel.yaml, which keeps comments, writes 1.2. What the two take for
different things is written so that they agree, and every text is read back with PyYAML before anybody gets it. Must not
know: what a profile may hold, files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

COMMENT = re.compile(r"(?:^|\s)(#.*)$")
HEADER = """\
# Measured, chosen and written by `bench tune`, which replaces it; do not edit. What you want otherwise, set in another
# file of this folder: that wins. To go back to the profile before: mv .tuned.previous.yml tuned.yml. To the defaults:
# delete this file. Then deploy: ansible-playbook ansible/profile.yml --limit <this node>
"""


class NotYaml(ValueError):
    """Why a text holds no variables, with the line where that shows."""


def render(name: str, value: Mapping[str, Any], old: bytes = b"") -> bytes:
    """A file that gives the variable `name` this value; comments and other variables of `old` are kept.

    Raises: NotYaml for `old`, ValueError if the text would be read back otherwise than it was meant.
    """
    text = _without_header(old.decode(errors="replace"))
    others = {key: other for key, other in (load(text.encode()) or {}).items() if key != name}
    try:
        document = _round_trip().load(text)
    except YAMLError as error:
        raise NotYaml(getattr(error, "problem", None) or "it is not YAML") from error
    document = CommentedMap() if document is None else document
    for key in [key for key in document if key == name and not isinstance(document[key], CommentedMap)]:
        del document[key]
    _merge(document.setdefault(name, CommentedMap()), value)
    stream = io.StringIO()
    _round_trip().dump(document, stream)
    new = HEADER + stream.getvalue()
    new += "".join(f"{comment}\n" for comment in _comments(text) if comment not in new)
    if load(new.encode()) != {**others, name: value}:
        raise ValueError("YAML cannot say it so that it is read back the same")
    return new.encode()


def load(raw: bytes) -> dict[str, Any] | None:
    """The variables, by the parser that Ansible has; None where there are none. Raises: NotYaml."""
    try:
        found = yaml.safe_load(raw.decode())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise NotYaml(f"{line}{getattr(error, 'problem', None) or 'it is not YAML'}") from error
    except (ValueError, RecursionError) as error:
        raise NotYaml(f"it is not YAML ({type(error).__name__})") from error
    if found is not None and not isinstance(found, dict):
        raise NotYaml(f"it holds no variables, but a {type(found).__name__}")
    return found


def _merge(document: CommentedMap, wanted: Mapping[str, Any]) -> None:
    """Make `document` say what is wanted and leave what already does, with the comments on it."""
    for name in [name for name in document if name not in wanted]:
        del document[name]
    for name, value in wanted.items():
        if isinstance(value, dict) and isinstance(document.get(name), CommentedMap):
            _merge(document[name], value)
        else:
            document[name] = _node(value)


def _node(value: Any) -> Any:
    """Texts in quotes, since Ansible's YAML takes a bare on, 30:00 or 2026-01-31 for something else."""
    if isinstance(value, dict):
        return CommentedMap({name: _node(inner) for name, inner in value.items()})
    if isinstance(value, list):
        row = CommentedSeq(_node(inner) for inner in value)
        row.fa.set_flow_style()
        return row
    return DoubleQuotedScalarString(value) if isinstance(value, str) else value


class _Representer(RoundTripRepresenter):
    def number(self, value: float) -> Any:
        """1e-05 as 1.0e-05: without the point YAML 1.1 reads a text."""
        digits = repr(value) if "." in repr(value) else repr(value).replace("e", ".0e", 1)
        return self.represent_scalar("tag:yaml.org,2002:float", digits)

    def nothing(self, value: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(float, _Representer.number)
_Representer.add_representer(type(None), _Representer.nothing)


def _round_trip() -> Any:
    both = YAML()
    both.Representer = _Representer
    both.width = 1000
    both.allow_duplicate_keys = True  # as Ansible does
    return both


def _without_header(text: str) -> str:
    lines = text.splitlines(keepends=True)
    ours = set(HEADER.splitlines(keepends=True))
    while lines and lines[0] in ours:
        del lines[0]
    return "".join(lines)


def _comments(text: str) -> list[str]:
    return [match[1] for line in text.splitlines() if (match := COMMENT.search(line))]
