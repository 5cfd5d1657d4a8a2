"""The file of a node's tuned profile, inventory/host_vars/<node>/tuned.yml: the one there that is the machine's.

Owns how it is read, replaced, kept and brought back. What a file that is no profile is told, is the playbooks' own
checks to say. Must not know: how settings are found, other nodes, the command line.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from bench import lock, wholefile
from bench.inventory import tuned_text
from bench.inventory.tuned_profile import VARIABLE, TunedProfile

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


def no_yaml(inventories: Iterable[Path]) -> dict[str, str]:
    """The nodes whose file is not even YAML, and what to do about it; Ansible then reads none of all nodes."""
    found = {}
    for inventory in inventories:
        for path in sorted((inventory / "host_vars").glob(f"[!.]*/{NAME}")):
            try:
                tuned_text.load(_content(path) or b"")
            except tuned_text.NotYaml as error:
                found[path.parent.name] = f"{path.parent.name}: {_not_a_profile(path, str(error), or_else='')}"
            except ProfileError as error:
                found[path.parent.name] = f"{path.parent.name}: {error}"
    return found


def require_replaceable(inventory: Path, node: str, *, force: bool = False, is_dry: bool = False) -> None:
    """Raises: NotAProfile, ProfileError where `write` would refuse whatever profile it is given; `change`, if dry."""
    path = path_of(inventory, node)
    try:
        read(inventory, node)
    except NotAProfile:
        if not force:
            raise
    _refuse_to_hide(path)
    if is_dry:
        return
    nearest = next(folder for folder in path.parents if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise ProfileError(f"{path} cannot be written: {nearest} is not this user's to write. Nothing was measured.")


def problems(profile: TunedProfile, path: Path) -> list[str]:
    """What keeps a profile from being written, a sentence each."""
    found: list[str] = _checks().tuned_profile_problems(_plain(profile), str(path))
    return found + [f"{path}: {VARIABLE}.{field} is not a finite number." for field in _endless(_plain(profile))]


@dataclass(frozen=True)
class Change:
    """What writing a profile would do. `new` is the file's content, None when nothing would change.

    has_same_env: the settings stand there already; what is new is how they were measured.
    """

    path: Path
    old: bytes | None
    new: bytes | None
    is_rejected: bool = False
    has_same_env: bool = False

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
    has_same_env = standing is not None and standing.env == profile.env
    return Change(path, old, _render(profile, path, old or b""), has_same_env=has_same_env)  # 5


def write(inventory: Path, node: str, profile: TunedProfile, *, force: bool = False) -> Path:
    """Put the profile in its place; the one that it replaces is kept beside it, where Ansible does not see it.

    1. Nothing to change: nothing is touched. 2. What was no profile becomes .tuned.rejected.yml. 3. The replaced one
    becomes the previous one, unless its settings are the same: then what was before them stays that. Where there was
    none, there is none. 4. The new one, whole or not at all. 5. Read again.
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
        elif planned.is_rejected:
            wholefile.put(old, path.with_name(REJECTED))  # 2
        elif not planned.has_same_env:
            wholefile.put(old, path.with_name(PREVIOUS))  # 3
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
        with lock.held(inventory):
            yield
    except lock.HeldByAnother as other:
        raise ProfileError(f"another bench tunes {inventory} now ({other}); wait for its end, or stop it.") from None
    except lock.Unlockable as error:
        raise ProfileError(f"{inventory} cannot be locked: {error}.") from error


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


def _not_a_profile(path: Path, why: str, or_else: str = ", or have it replaced with --force") -> NotAProfile:
    return NotAProfile(
        f"{path} is no profile of bench: {why.rstrip('.')}. Was it edited by hand? "
        f"Take an earlier one from git, or delete it{or_else}."
    )


def _unwritable(path: Path, error: OSError) -> ProfileError:
    return ProfileError(f"{path} cannot be written: {error.strerror}. The profile that stands there is whole.")
