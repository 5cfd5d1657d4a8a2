"""What is wrong with a fleet, from what its nodes say of themselves and from what was measured. Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.inventory.tuned_profile import TunedProfile, is_stale
from bench.running.board_validity import REMEDIES
from bench.statistics.outliers import LEAST_NODES, outliers
from bench.tuning.deploy import Playbook
from bench.tuning.meter import not_in_force

# What should be the same: on all nodes, or on all with the same board.
EVERYWHERE = {
    "the model": ("model", "name"),
    "the model's digest": ("model", "digest"),
    "Ollama's version": ("engine", "version"),
    "the appliance's release": ("appliance", "release"),
    "the appliance's version": ("appliance", "version"),
}
AMONG_EQUALS = {
    "the governor": ("governor",),
    "the firmware": ("board", "firmware"),
    "the kernel": ("board", "kernel"),
}
FIXES = {
    "the governor": "ansible-playbook ansible/site.yml sets it",
    "the firmware": "sudo rpi-eeprom-update -a, then start it anew",
    "the kernel": "sudo apt full-upgrade, then start it anew",
}
UPGRADE = "ansible-playbook ansible/site.yml brings all to the inventory's"
EQUALS = (("board", "name"), ("board", "memory_mib"), ("model", "digest"), ("engine", "version"))
KNOBS_THAT_MATTER = ("N_CTX", "N_THREADS", "N_BATCH", "MAX_CONCURRENT_REQUESTS")


@dataclass(frozen=True)
class Speed:
    """Of one stream, by the newest valid run. under: how it was asked; facts: GET /node, then."""

    decode_tokens_per_s: float
    under: Any
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Patient:
    """One node. facts: GET /node, now. speed: as it was measured. profile_problem: why its profile is none."""

    name: str
    facts: Mapping[str, Any] | None = None
    profile: TunedProfile | None = None
    speed: Speed | None = None
    problem: str = ""
    profile_problem: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    kind: unreachable, engine, drift, no profile, stale, not deployed, throttled, outlier.
    """

    kind: str
    node: str
    text: str
    remedy: str
    test: str = field(default="")
    p: float | None = None


def findings(patients: list[Patient], inventories: Sequence[str] = ()) -> list[Finding]:
    """All of them, node by node within each kind. inventories: as they were given with -i, for the remedies."""
    return [
        *_unreachable(patients),
        *_drift(patients),
        *_profiles(patients, inventories),
        *_throttled(patients),
        *_outliers(patients),
    ]


def _unreachable(patients: list[Patient]) -> Iterator[Finding]:
    for one in patients:
        if one.problem:
            yield Finding("unreachable", one.name, one.problem, "see `bench doctor` again when it answers")
        elif problem := _at(one.facts, "engine", "problem"):
            yield Finding("engine", one.name, str(problem), "systemctl status ollama, on the node")


def _drift(patients: list[Patient]) -> Iterator[Finding]:
    """The value that most have is taken to be the right one; where none is in the majority, each is told."""
    yield from (drift for what, path in EVERYWHERE.items() for drift in _odd(patients, what, path, UPGRADE))
    for what, path in AMONG_EQUALS.items():
        boards = dict.fromkeys(_at(one.facts, "board", "name") for one in patients)
        for board in boards:
            equals = [one for one in patients if _at(one.facts, "board", "name") == board]
            yield from _odd(equals, what, path, FIXES[what])


def _odd(patients: list[Patient], what: str, path: tuple[str, ...], remedy: str) -> Iterator[Finding]:
    values = {one.name: value for one in patients if (value := _at(one.facts, *path)) is not None}
    counts = Counter(map(str, values.values()))
    if len(counts) < 2:
        return
    (most, count), (_, second) = counts.most_common(2)
    for node, value in values.items():
        if count > second and str(value) != most:
            yield Finding("drift", node, f"{what} is {value}, and {most} on {count} of {len(values)} nodes", remedy)
        elif count == second:
            yield Finding("drift", node, f"{what} is {value}; the nodes have {len(counts)} different ones", remedy)


def _profiles(patients: list[Patient], inventories: Sequence[str]) -> Iterator[Finding]:
    where = [part for source in inventories for part in ("-i", source)]
    for one in patients:
        tuning = shlex.join(["bench", "tune", *where, "--limit", one.name])
        if one.profile_problem:
            yield Finding("no profile", one.name, one.profile_problem, f"{tuning} --force, or an earlier file from git")
        if one.profile is None or not one.facts:
            continue
        for reason in is_stale(one.profile, one.facts):
            yield Finding("stale", one.name, f"its profile is stale: {reason}", tuning)
        if problem := not_in_force(one.profile.env, one.facts):
            yield Finding("not deployed", one.name, problem, shlex.join(Playbook(inventories).command(one.name)))


def _throttled(patients: list[Patient]) -> Iterator[Finding]:
    for one in patients:
        now = set(_at(one.facts, "throttling", "now") or ())
        before = set(_at(one.facts, "throttling", "since_boot") or ())
        for name in sorted(now | before):
            when = "now" if name in now else "since its start"
            text = f"the board reports {name.replace('_', ' ')} {when}"
            yield Finding("throttled", one.name, text, REMEDIES.get(name, "see vcgencmd get_throttled"))


def _outliers(patients: list[Patient]) -> Iterator[Finding]:
    for group in equals(patients):
        for outlier in outliers(group):
            word = "slower" if outlier.change < 0 else "faster"
            text = (
                f"decodes {outlier.value:.3g} tokens/s, {abs(outlier.change):.0%} {word} than the median of "
                f"{outlier.n} equal nodes; {outlier.test}, p = {outlier.p:.2g}"
            )
            remedy = "compare cooling, supply and what else runs there" if word == "slower" else "is it really equal?"
            yield Finding("outlier", outlier.node, text, remedy, outlier.test, outlier.p)


def equals(patients: list[Patient]) -> list[dict[str, float]]:
    """Speeds that compare: of the same board, memory, model, engine and settings when they were measured, asked alike.

    Of fewer than LEAST_NODES nodes none can be told to be odd, so those are left out.
    """
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for one in patients:
        if one.speed:
            kind = (one.speed.under, *(_at(one.speed.facts, *path) for path in EQUALS), *_settings(one.speed.facts))
            groups.setdefault(kind, {})[one.name] = one.speed.decode_tokens_per_s
    return [group for group in groups.values() if len(group) >= LEAST_NODES]


def _settings(facts: Mapping[str, Any]) -> list[Any]:
    return [_at(facts, "settings", name) for name in KNOBS_THAT_MATTER]


def _at(found: Any, *path: str) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
