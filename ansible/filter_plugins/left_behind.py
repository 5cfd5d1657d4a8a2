"""Which nodes a rollback would take one step too far, since the last upgrade did not come to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

OLLAMA, APPLIANCE = "/opt/ollama/current", "/opt/pi-llm/current"


def left_behind(nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The nodes that serve with what another would go back to, and have something older to go back to themselves.

    nodes: names of those that are to go back, in the inventory's order. hostvars: each with `rollout__sorted`, what
    module deployment said.
    """
    told = {node: hostvars[node]["rollout__sorted"] for node in nodes}
    going = {node: found["refers_to"] for node, found in told.items() if found["has_previous"]}
    return [node for node, links in going.items() if any(_is_ahead(other, links) for other in going.values())]


def _is_ahead(other: Mapping[str, Any], links: Mapping[str, Any]) -> bool:
    now = _releases(links["proven"])
    return _releases(other["previous"]) == now != _releases(other["proven"])


def _releases(links: Mapping[str, str]) -> tuple[str, str]:
    """By what nodes of different architectures can be compared: an archive of Ollama is of one, so without its hash."""
    ollama, appliance = (links.get(path, "").rpartition("/")[2] for path in (OLLAMA, APPLIANCE))
    return re.sub("-[0-9a-f]{8}$", "", ollama), appliance


class FilterModule:
    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"left_behind": left_behind}
