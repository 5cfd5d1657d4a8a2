"""What lies in the results, node by node, reduced to what a report shows; samples are dropped as soon as they are read.

Owns the way from files to figures. Must not know: how a report looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.inventory import tuned_file
from bench.inventory.tuned_file import ProfileError
from bench.inventory.tuned_profile import TunedProfile
from bench.knobs import KNOBS
from bench.running import runfile
from bench.running.outcome import Outcome, outcome
from bench.running.runfile import RunFileError
from bench.running.samples import ClosedLoop, Mark, Run
from bench.running.summary import Quantity, StageSummary, quantity
from bench.statistics.comparison import Verdict
from bench.tuning import tune_file, verify_file
from bench.tuning.tune_file import TuneRun
from bench.tuning.verify_file import VerifyRun

PARTS = ("board", "throttling", "throttling_seen", "engine", "model", "bandwidth", "memory", "settings", "appliance")
LOUD = ("undervoltage", "frequency_capped", "throttled", "soft_temperature_limit")


@dataclass(frozen=True)
class RunView:
    """One run: its figures, and what the node said of itself.

    asked: lengths of prompts, and of answers at most. settings: the knobs that were in force; empty where the node did
    not say. throttling: what was seen during the run,
    by name; None where the node has no such bits. temperatures_c: before it, and the highest.
    """

    outcome: Outcome
    started_at: str
    asked: tuple[tuple[int, ...], int]
    fingerprint: dict[str, Any]
    settings: dict[str, Any]
    throttling: tuple[str, ...] | None
    temperatures_c: tuple[float, float] | None

    @property
    def is_usable(self) -> bool:
        return self.outcome.is_valid and any(stage.answered for stage in self.outcome.stages)

    @property
    def marks(self) -> list[Mark]:
        return self.outcome.marks

    @property
    def single(self) -> tuple[StageSummary, Quantity] | None:
        """The stage of one stream, or of the fewest there are, and its decode speed."""
        stages = [(s, q) for s in self.outcome.stages if (q := s.quantities.get("decode_tokens_per_s")) is not None]
        return min(stages, key=lambda found: _streams(found[0]), default=None)

    @property
    def load(self) -> str:
        """Of `single`; nothing where there is none."""
        return str(self.single[0].load) if self.single else ""

    @property
    def is_of_one_stream(self) -> bool:
        return self.single is not None and self.single[0].load == ClosedLoop(1)

    @property
    def fullest(self) -> StageSummary | None:
        """The stage with the highest throughput."""
        stages = [stage for stage in self.outcome.stages if stage.answered]
        return max(stages, key=lambda stage: stage.output_tokens_per_s.value, default=None)


@dataclass(frozen=True)
class BlockSpeed:
    """Decode tokens/s of one stream, and what the node said of itself, by the blocks of a tune or a verification.

    Of the tune's winner, or of the profile that the verification left. source: the command.
    """

    source: str
    started_at: str
    decode_tokens_per_s: Quantity
    fingerprint: dict[str, Any]
    throttling: tuple[str, ...] | None


@dataclass(frozen=True)
class NodeView:
    """One node: what was measured, from the oldest to the newest, and its profile in the inventory, if it has one."""

    name: str
    runs: tuple[RunView, ...] = ()
    tunes: tuple[TuneRun, ...] = ()
    verifications: tuple[VerifyRun, ...] = ()
    profile: TunedProfile | None = None

    @property
    def shown(self) -> RunView | None:
        """The run whose figures stand for the node: the newest usable one; else the newest, which its marks go with."""
        usable = [run for run in self.runs if run.is_usable]
        measured = [run for run in self.runs if run.outcome.stages]
        return next(iter([*usable[-1:], *measured[-1:], *self.runs[-1:]]), None)

    @property
    def blocks(self) -> BlockSpeed | None:
        """The newest there are: for a node that no usable run tells of."""
        measured: list[TuneRun | VerifyRun] = [*self.tunes, *self.verifications]
        speeds = [found for each in measured if (found := block_speed(each))]
        return max(speeds, key=lambda found: found.started_at, default=None)

    @property
    def tune(self) -> TuneRun | None:
        """The newest that came to its end; else the newest."""
        ended = [tune for tune in self.tunes if tune.outcome is not None]
        return next(iter([*ended[-1:], *self.tunes[-1:]]), None)


@dataclass(frozen=True)
class Results:
    """A folder of results. unreadable: files, and why."""

    nodes: tuple[NodeView, ...]
    unreadable: tuple[tuple[str, str], ...] = ()


def gathered(folder: Path, inventories: Sequence[Path] = ()) -> Results:
    """Everything that can be read there. A file that cannot is told of, and hides no other.

    inventories: their folders, for the nodes' profiles; the first that has one counts.
    """
    unreadable: list[tuple[str, str]] = []
    nodes = [_node(path, inventories, unreadable) for path in _folders(folder)]
    return Results(tuple(node for node in nodes if node.runs or node.tunes or node.verifications), tuple(unreadable))


def _node(folder: Path, inventories: Sequence[Path], unreadable: list[tuple[str, str]]) -> NodeView:
    runs, tunes, verifications, known = [], [], [], None
    for path in sorted(folder.glob(f"[0-9]*{runfile.SUFFIX}")):
        try:
            if f"-{tune_file.KIND}-" in path.name:
                tunes.append(runfile.read(path, TuneRun))
            elif f"-{verify_file.KIND}-" in path.name:
                verifications.append(runfile.read(path, VerifyRun))
            elif "-run-" in path.name:
                runs.append(view(runfile.read(path, Run)))
        except RunFileError as error:
            unreadable.append((str(path), str(error)))
    try:
        profiles = (tuned_file.read(inventory, folder.name) for inventory in inventories)
        known = next((found for found in profiles if found), None)
    except ProfileError as error:
        unreadable.append((folder.name, str(error)))
    return NodeView(folder.name, tuple(runs), tuple(tunes), tuple(verifications), known)


def view(run: Run) -> RunView:
    told = [node for facts in run.facts if (node := sound(facts.node))]
    node = sound(run.fingerprint.get("node"))
    in_force = found(node, "settings") or {}
    return RunView(
        outcome=outcome(run),
        started_at=run.started_at,
        asked=(tuple(run.settings.prompt_tokens), run.settings.max_tokens),
        fingerprint={**run.fingerprint, "node": node},
        settings={name: in_force[name] for name in KNOBS if name in in_force},
        throttling=throttling(told),
        temperatures_c=_temperatures(told),
    )


def block_speed(run: TuneRun | VerifyRun) -> BlockSpeed | None:
    """None where no block of one stream was measured with what was chosen."""
    if isinstance(run, VerifyRun):
        blocks = [each.old if run.restored else each.new for each in run.counted]
    else:
        winner = run.outcome.winner.settings if run.outcome and run.outcome.winner else None
        blocks = [each for each in run.blocks if each.settings == winner]
    found = quantity([each.figures.decode_tokens_per_s for each in blocks if each.figures and each.streams == 1])
    if found is None:
        return None
    looks = [run.before, *(look for each in blocks for look in (*each.during, each.facts))]
    told = [node for look in looks if look and (node := sound(look.node))]
    node = sound(run.fingerprint.get("node")) or next(iter(told), None) or {}
    chosen = {**(node.get("settings") or {}), **blocks[0].settings.env}  # not what the service had meanwhile
    source = "bench verify" if isinstance(run, VerifyRun) else "bench tune"
    return BlockSpeed(
        source, run.started_at, found, {**run.fingerprint, "node": {**node, "settings": chosen}}, throttling(told)
    )


def is_since(started_at: str, profile: TunedProfile) -> bool:
    """Whether what began then can speak of this profile: a look that is older says nothing of it."""
    return started_at[:19] >= profile.provenance.at[:19]


def verdict_of(run: VerifyRun) -> Verdict | None:
    """None while a further look could change it."""
    return run.verdict if run.verdict and run.verdict.is_final else None


def sound(node: Any) -> dict[str, Any] | None:
    """What a node said of itself, without those parts that are not what an appliance sends."""
    if not isinstance(node, dict):
        return None
    return {name: value for name, value in node.items() if isinstance(value, dict) or name not in PARTS}


def throttling(told: list[dict[str, Any]]) -> tuple[str, ...] | None:
    """The names of the throttle bits that were seen set from the first look to the last; None where none are told."""
    looks = [look for node in told if (look := node.get("throttling")) is not None]
    if not looks:
        return None
    names = [now for look in looks if isinstance(now := look.get("now"), list)]
    seen = {name for name in LOUD if any(name in now for now in names)}
    times = [counts for node in told if isinstance(counts := found(node, "throttling_seen", "times"), dict)]
    if times:
        seen |= {name for name in LOUD if times[-1].get(name, 0) != times[0].get(name, 0)}
    return tuple(name for name in LOUD if name in seen)


def found(facts: Any, *path: str) -> Any:
    """What lies there in nested objects; None where anything is missing."""
    for name in path:
        facts = facts.get(name) if isinstance(facts, dict) else None
    return facts


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Which knobs differ, in words; nothing where either side did not say."""
    if not before or not after:
        return []
    names = [name for name in KNOBS if before.get(name) != after.get(name)]
    return [f"{name} {before.get(name, 'unset')} → {after.get(name, 'unset')}" for name in names]


def _temperatures(told: list[dict[str, Any]]) -> tuple[float, float] | None:
    known = [float(t) for node in told if isinstance(t := node.get("temperature_c"), int | float)]
    return (known[0], max(known)) if known else None


def _streams(stage: StageSummary) -> float:
    """Closed loops before open ones, of which nobody knows how many are there at once."""
    return stage.load.concurrency if isinstance(stage.load, ClosedLoop) else 1e6 + stage.load.rate_per_s


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_dir())
