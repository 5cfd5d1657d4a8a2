"""docs/node.md tells of every field that GET /node and POST /node/bandwidth answer, and of no other."""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from appliance.bandwidth_probe import Bandwidth, Reading
from appliance.node import NodeAnswer

DOC = (Path(__file__).parent.parent / "docs/node.md").read_text()
NODE, BANDWIDTH = DOC.split("## The memory's bandwidth")
WHOLE = {"bandwidth"}  # it has a table of its own


def fields(struct: type[msgspec.Struct], prefix: str = "") -> set[str]:
    """Their names, those of nested ones with a point."""
    found: set[str] = set()
    for name, hint in get_type_hints(struct).items():
        inner = [each for each in (get_args(hint) if isinstance(hint, UnionType) else [hint]) if is_struct(each)]
        if inner and name not in WHOLE:
            found |= fields(inner[0], f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def told(text: str) -> set[str]:
    """What stands in code in the first cells of its table."""
    return {
        name for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }


def test_every_field_of_get_node_is_told_of_and_no_other() -> None:
    assert told(NODE) == fields(NodeAnswer)


def test_every_field_of_the_bandwidth_is_told_of_and_no_other() -> None:
    assert told(BANDWIDTH) == fields(Bandwidth)


@pytest.mark.parametrize("name", sorted(fields(Reading)))
def test_a_readings_fields_are_told_of(name: str) -> None:
    assert f"`{name}`" in BANDWIDTH
