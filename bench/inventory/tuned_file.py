"""A node's tuned profile and its file, inventory/host_vars/<node>/tuned.yml: the one file there that is the machine's.

Owns what is in the file and how it is replaced, kept and brought back. What a profile may hold is the schema's, so the
table of knobs', to say; what one that breaks it is told, the playbooks' own checks. Must not know: how settings are
found, other nodes, the command line.
"""

from __future__ import annotations

import difflib
import fcntl
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from bench import wholefile
from bench.inventory import tuned_text
from bench.knobs import FORMAT

VARIABLE = "tuned_profile"
NAME = "tuned.yml"
# Ansible reads every file of host_vars/<node>/ as variables, but none whose name begins with a dot.
PREVIOUS = ".tuned.previous.yml"
REJECTED = ".tuned.rejected.yml"
NODE_NAME = re.compile(r"[^./\x00-\x1f][^/\x00-\x1f]*")
DIGITS = 6
CHECKS = Path(__file__).parents[2] / "ansible" / "filter_plugins" / "tuned_profile.py"


class ProfileError(Exception):
    """A profile that cannot be read, written or brought back; the message says what to do."""


class NotAProfile(ProfileError):
    """tuned.yml was edited into something that no play would take."""


class Against(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a figure was compared with.

    settings: as "N_CTX=512 N_THREADS=4", or what they are, such as "the defaults".
    median: its own figure. change: of ours to it, as a share, with its confidence interval; n: rounds.
    """

    settings: str
    median: float | None = None
    change: float | None = None
    ci95: tuple[float, float] | None = None
    n: int | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One metric under the chosen settings."""

    median: float
    ci95: tuple[float, float]
    n: int
    against: Against | None = None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Which run chose the settings, when (UTC), and on what; None is not known."""

    run: str
    at: str
    model: str | None = None
    model_digest: str | None = None
    ollama: str | None = None
    appliance: str | None = None
    board: str | None = None
    throttled: str | None = None

    @classmethod
    def of(cls, run: str, at: str, facts: Mapping[str, Any] | None) -> Provenance:
        """facts: what GET /node answered, or None."""
        return cls(run=run, at=at, **basis(facts))


class TunedProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The variable tuned_profile, in the order of the file."""

    format: int = FORMAT
    env: dict[str, int | str]
    measured: dict[str, Measured]
    provenance: Provenance


def basis(facts: Mapping[str, Any] | None) -> dict[str, str | None]:
    """What a profile rests on, by its names in Provenance, out of GET /node's answer."""
    found: Mapping[str, Any] = facts or {}

    def at(part: str, name: str) -> str | None:
        value = (found.get(part) or {}).get(name)
        return None if value is None else str(value)

    return {
        "model": at("model", "name"),
        "model_digest": at("model", "digest"),
        "ollama": at("engine", "version"),
        "appliance": at("appliance", "version"),
        "board": at("board", "name"),
        "throttled": at("throttling", "bits"),
    }


STALE_WITH = {
    "model": "the model",
    "model_digest": "the model's digest",
    "ollama": "Ollama's version",
    "board": "the board",
}


def is_stale(profile: TunedProfile, facts: Mapping[str, Any] | None) -> list[str]:
    """Why what was measured is no longer true of this node, a sentence each; none while it still is.

    What either side does not know is not held against the profile. facts: what GET /node answers now.
    """
    now = basis(facts)
    reasons = []
    for name, what in STALE_WITH.items():
        then, today = getattr(profile.provenance, name), now[name]
        if then is not None and today is not None and then != today:
            reasons.append(f"{what} was {then} when it was measured, and is {today} now")
    return reasons


def path_of(inventory: Path, node: str) -> Path:
    """inventory: the folder with host_vars in it. Raises: ProfileError for a name that is no file's."""
    if not NODE_NAME.fullmatch(node):
        raise ProfileError(f"{node!r} cannot have a profile: its name is none for a folder of {inventory}/host_vars.")
    return inventory / "host_vars" / node / NAME


def read(inventory: Path, node: str) -> TunedProfile | None:
    """The node's profile; None where it has none. Raises: NotAProfile, ProfileError."""
    path = path_of(inventory, node)
    raw = _content(path)
    return None if raw is None else parse(raw, path)


def read_previous(inventory: Path, node: str) -> TunedProfile | None:
    """The profile that `restore` would bring back; None for the defaults. Raises: NotAProfile, ProfileError."""
    path = path_of(inventory, node).with_name(PREVIOUS)
    raw = _content(path)
    return None if raw is None else parse(raw, path)


def parse(raw: bytes, path: Path) -> TunedProfile | None:
    """The profile in a file's content; None where it holds none. Raises: NotAProfile."""
    try:
        found = (tuned_text.load(raw) or {}).get(VARIABLE)
        if found is None:
            return None
        if wrong := _checks().tuned_profile_problems(found, str(path)):
            raise _not_a_profile(path, "; ".join(sentence.removeprefix(f"{path}: ") for sentence in wrong))
        return msgspec.convert(found, TunedProfile)
    except (tuned_text.NotYaml, msgspec.ValidationError) as error:
        raise _not_a_profile(path, str(error)) from error


def problems(profile: TunedProfile, path: Path) -> list[str]:
    """What keeps a profile from being written, a sentence each."""
    found: list[str] = _checks().tuned_profile_problems(_plain(profile), str(path))
    return found + [f"{path}: {VARIABLE}.{field} is not a finite number." for field in _endless(_plain(profile))]


@dataclass(frozen=True)
class Change:
    """What writing a profile would do. `new` is the file's content, None when nothing would change."""

    path: Path
    old: bytes | None
    new: bytes | None
    is_rejected: bool = False

    def __str__(self) -> str:
        """As a unified diff."""
        if self.new is None:
            return ""
        old, before = (b"", "/dev/null") if self.old is None else (self.old, str(self.path))
        lines = old.decode(errors="replace").splitlines(), self.new.decode().splitlines()
        return "".join(f"{line}\n" for line in difflib.unified_diff(*lines, before, str(self.path), lineterm=""))


def change(inventory: Path, node: str, profile: TunedProfile, *, force: bool = False) -> Change:
    """What `write` would do; str() of it is the diff for a dry run. Writes nothing.

    1. A profile that the schema refuses is never written. 2. Nor one where a file of people's would no longer be read.
    3. What is there and is no profile is replaced only by `force`. 4. Where the same profile stands already, nothing is
    to be done. 5. Comments and other variables that people put there stay.

    Raises: NotAProfile (3), ProfileError.
    """
    path = path_of(inventory, node)
    if wrong := problems(profile, path):  # 1
        raise ProfileError("\n".join(wrong))
    _refuse_to_hide(path)  # 2
    old = _content(path)
    try:
        standing = None if old is None else parse(old, path)
    except NotAProfile:
        if not force:
            raise
        return Change(path, old, _render(profile, path, b""), is_rejected=True)  # 3
    if standing is not None and _plain(standing) == _plain(profile):  # 4
        return Change(path, old, None)
    return Change(path, old, _render(profile, path, old or b""))  # 5


def write(inventory: Path, node: str, profile: TunedProfile, *, force: bool = False) -> Path:
    """Put the profile in its place; the one that it replaces is kept beside it, where Ansible does not see it.

    1. Nothing to change: nothing is touched. 2. What was no profile becomes .tuned.rejected.yml. 3. The replaced one
    becomes the previous one; where there was none, there is none. 4. The new one, whole or not at all. 5. Read again.
    Killed at any point, the file is the old one or the new one, and the next call tidies up.

    Raises: as `change`; ProfileError where the disk does not take it.
    """
    planned = change(inventory, node, profile, force=force)
    path, old, new = planned.path, planned.old, planned.new
    if new is None:  # 1
        return path
    try:
        for name in (NAME, PREVIOUS, REJECTED):
            wholefile.remove_leftovers(path.with_name(name))
        if old is None:
            wholefile.remove(path.with_name(PREVIOUS))  # 3
        else:
            wholefile.put(old, path.with_name(REJECTED if planned.is_rejected else PREVIOUS))  # 2, 3
        wholefile.put(new, path)  # 4
    except OSError as error:
        raise _unwritable(path, error) from error
    if read(inventory, node) != parse(new, path):  # 5
        raise ProfileError(f"{path} is not what was written there a moment ago; does something else write it?")
    return path


def restore(inventory: Path, node: str) -> TunedProfile | None:
    """Bring back what was before; the two change places, so a second call undoes the first.

    1. Neither, or both the same: there is nothing to go back to. 2. No previous one: the profile was the node's first,
    and is put beside; the node goes back to the defaults. 3. None in force: the one beside comes back. 4. Both: the
    previous one into its place first, then the other beside it.
    Returns: the profile that now is the node's; None for the defaults.
    Raises: NotAProfile where the previous one is none, ProfileError.
    """
    path = path_of(inventory, node)
    beside = path.with_name(PREVIOUS)
    current, previous = _content(path), _content(beside)
    if current == previous:  # 1
        raise ProfileError(f"{path}: there is no other profile to go back to.")
    profile = None if previous is None else parse(previous, beside)
    try:
        if previous is None:  # 2
            wholefile.rename(path, beside)
        elif current is None:  # 3
            wholefile.rename(beside, path)
        else:  # 4
            wholefile.put(previous, path)
            wholefile.put(current, beside)
    except OSError as error:
        raise _unwritable(path, error) from error
    return profile


@contextmanager
def locked(inventory: Path) -> Iterator[None]:
    """Only one bench may tune an inventory at a time; the lock goes with the process, however that ends.

    The folder itself is locked, so nothing is left in it. Raises: ProfileError.
    """
    try:
        handle = os.open(inventory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ProfileError(f"{inventory} cannot be locked: {error.strerror}.") from error
    try:
        _lock(handle, inventory)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, inventory: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ProfileError(
            f"another bench tunes {inventory} now; wait for its end, or stop it (`fuser -v {inventory}` names it)."
        ) from None
    except OSError as error:
        raise ProfileError(f"{inventory} cannot be locked: {error.strerror}.") from error


def _render(profile: TunedProfile, path: Path, old: bytes) -> bytes:
    try:
        return tuned_text.render(VARIABLE, _plain(profile), old)
    except ValueError as error:
        raise ProfileError(f"{path}: {error}.") from error


def _plain(profile: TunedProfile) -> dict[str, Any]:
    """As the schema and YAML see it; numbers with as many digits as they are worth."""
    plain: dict[str, Any] = _rounded(msgspec.to_builtins(profile, builtin_types=()))
    return plain


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) and math.isfinite(value) else value


def _endless(value: Any, field: str = "") -> Iterator[str]:
    """Fields with a number that is none, which JSON Schema lets pass."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from _endless(each, f"{field}.{name}" if field else str(name))
    if isinstance(value, float) and not math.isfinite(value):
        yield field


@cache
def _checks() -> ModuleType:
    """The playbooks' own checks, so that nothing is written that they would refuse."""
    spec = importlib.util.spec_from_file_location("_tuned_profile_checks", CHECKS)
    if spec is None or spec.loader is None:
        raise ProfileError(f"{CHECKS} is missing; bench runs from the project's folder.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _content(path: Path) -> bytes | None:
    """Raises: ProfileError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}.") from error


def _refuse_to_hide(path: Path) -> None:
    """Ansible reads host_vars/<node>/ or else host_vars/<node>.yml: making the folder would silence the file.

    Raises: ProfileError.
    """
    folder = path.parent
    hidden = [folder, *(folder.with_name(folder.name + suffix) for suffix in (".yml", ".yaml", ".json"))]
    for file in hidden:
        if file.is_file():
            raise ProfileError(
                f"{file} would no longer be read if {path} were written: Ansible takes the folder alone. Make it part "
                f"of the folder: mkdir {folder}.d && mv {file} {folder}.d/mine.yml && mv {folder}.d {folder}"
            )


def _not_a_profile(path: Path, why: str) -> NotAProfile:
    return NotAProfile(
        f"{path} is no profile of bench: {why}. Was it edited by hand? Take an earlier one from git, delete it, or "
        "have it replaced with --force."
    )


def _unwritable(path: Path, error: OSError) -> ProfileError:
    return ProfileError(f"{path} cannot be written: {error.strerror}. The profile that stands there is whole.")
