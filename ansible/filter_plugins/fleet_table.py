"""The fleet as a table for people: what verify.yml ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

HEAD = ("NODE", "APPLIANCE", "OLLAMA", "MODEL", "DIGEST", "READY", "TOKENS/S", "RESTARTS", "DISK FREE", "STATE")
UNKNOWN = "-"
GIB = 1024  # MiB


class FilterModule:
    """Found by Ansible under this name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"fleet_table": fleet_table, "node_problems": node_problems}


def fleet_table(nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each node under a line of heads, in aligned columns; below, what is wrong, a line each.

    A node that could not be looked at has no `rollout__state` and is told as such. A stale profile is told and is no
    fault: the node serves as it is wanted, only not as fast as it might.
    """
    rows = [HEAD, *(row(node, hostvars[node]) for node in nodes)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
    return lines + [
        f"{node}: {sentence}"
        for node in nodes
        for sentence in (*problems_of(hostvars[node]), *stale_sentences(hostvars[node]))
    ]


def row(node: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
    state = facts.get("rollout__state")
    if not state or "units" not in state:
        return (node, *[UNKNOWN] * (len(HEAD) - 2), "not reached")
    probe = facts.get("rollout__probe_report") or {}
    speed = probe.get("tokens_per_s")
    return (
        node,
        state["releases"].get("appliance") or UNKNOWN,
        state["ollama_version"] or UNKNOWN,
        str(facts.get("model_name", UNKNOWN)),
        (state["digest"] or UNKNOWN)[:12],
        "yes" if (state["ready"] or {}).get("http_status") == 200 else "no",
        f"{speed:.1f}" if speed is not None else UNKNOWN,
        str(sum(unit["restarts"] for unit in state["units"].values())),
        f"{state['disk_free_mib'] / GIB:.1f} GiB",
        state_of(facts),
    )


def state_of(facts: Mapping[str, Any]) -> str:
    if wrong := problems_of(facts):
        return f"{len(wrong)} to mend"
    return "profile stale" if facts.get("rollout__stale") else "as it should be"


def stale_sentences(facts: Mapping[str, Any]) -> list[str]:
    reasons = list(facts.get("rollout__stale") or [])
    return [f"its tuned profile is stale: {'; '.join(reasons)} (bench tune measures it anew)"] if reasons else []


def problems_of(facts: Mapping[str, Any]) -> list[str]:
    return list(facts.get("rollout__problems") or [])


def node_problems(
    state: Mapping[str, Any], probe: Mapping[str, Any], is_settled: bool, is_as_in_inventory: bool
) -> list[str]:
    """Everything that is wrong with a node, a sentence each.

    state: what module node_state returned. probe: the result of `pi-llm probe`. is_settled: nothing lies on the disk
    that the services do not run with. is_as_in_inventory: the settings are those of the inventory.
    """
    found = list(state.get("problems", []))
    if probe.get("rc") != 0:
        words = (probe.get("stderr") or probe.get("msg") or "pi-llm probe could not run").strip().splitlines()
        found.append(f"no generation: {words[-1]}")
    if not is_settled:
        found.append("units, settings or releases on the disk are not those that run (site.yml makes them so)")
    if not is_as_in_inventory:
        found.append("the settings are not those of the inventory (profile.yml writes them)")
    return found
