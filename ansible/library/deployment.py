#!/usr/bin/python
"""Remembers what a node's services were proven to run with, tells what differs from it, and puts it back.

Owns one file, `snapshots.json` under `root`: the last set of files and links that was seen to serve (`proven`) and the
one before it (`previous`), and which parts may run with something else (`unproven`). All are in one file since one
rename then is the whole change: cut anywhere, it holds the old state or the new one. Knows nothing of services; who
calls it restarts them.
"""

from __future__ import annotations

import base64
import grp
import json
import os
import pwd
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: deployment
short_description: Remember, compare and put back what a node's services run with
description:
  - A I(part) is a service with the files and links that decide what it runs. A snapshot holds all of them as they were,
    with content, mode, owner and group, or that there was none.
  - A service must restart when its part differs from the proven snapshot. That is read from the disk and not from what
    this run changed, so a run that was killed between a change and its restart is finished by the next one.
  - It must also restart when an earlier run began to restart it and did not come to prove it, even if the disk is again
    as it was; V(begun) remembers that.
  - Files are kept whole, secrets among them, in one file that root alone can read.
options:
  state:
    description:
      - V(compared) tells which parts differ from the proven snapshot. It never changes anything.
      - V(begun) tells the same and remembers it, before services restart, until V(proven).
      - V(proven) makes the proven snapshot what the disk holds now, if it differs; the one until then becomes the
        previous one. After going back to the previous one there is none before it. Parts that are not named stay as
        the proven snapshot has them.
      - V(restored) writes every file and link of a snapshot back, and removes what the snapshot knows as absent.
    type: str
    required: true
    choices: [compared, begun, proven, restored]
  parts:
    description:
      - The names of the parts, each with absolute paths of files and links.
      - Needed for V(compared), V(begun) and V(proven). With V(restored) it says which parts, and all of them when it is
        left out; its paths do not matter there, since the snapshot knows its own.
    type: dict
    default: {}
  from:
    description: The snapshot that V(restored) puts back.
    type: str
    default: proven
    choices: [proven, previous]
  root:
    description: The directory of the snapshots; made when missing, for root alone.
    type: path
    default: /var/lib/pi-llm-fleet/deployment
attributes:
  check_mode:
    support: full
    description: Nothing is written, and the answer is what it would be.
  diff_mode:
    support: full
    description: Paths with kind, mode and owner; never what is in a file.
author:
  - Pi LLM Fleet (@pi-llm-fleet)
"""

EXAMPLES = r"""
- name: See which services run with other files than are there now
  deployment:
    state: compared
    parts:
      appliance: [/opt/pi-llm/current, /etc/pi-llm/appliance.env, /etc/systemd/system/pi-llm.service]
  register: rollout__compared

- name: Keep what serves
  deployment:
    state: proven
    parts:
      appliance: [/opt/pi-llm/current, /etc/pi-llm/appliance.env, /etc/systemd/system/pi-llm.service]

- name: Go back one deployment
  deployment:
    state: restored
    from: previous
"""

RETURN = r"""
changed_parts:
  description: Names of parts whose files or links differ from the proven snapshot, or that an earlier run began to
    restart; all when there is no snapshot. After V(proven) and V(restored), those that were made the same.
  returned: always
  type: list
  elements: str
  sample: [appliance]
has_proven:
  description: Whether there is a proven snapshot.
  returned: always
  type: bool
has_previous:
  description: Whether there is a previous snapshot.
  returned: always
  type: bool
lost:
  description: What links of the previous snapshot refer to and is not on the disk any more.
  returned: always
  type: list
  elements: str
  sample: [/opt/ollama/releases/0.34.3-5d41402a]
restored:
  description: Paths that were written back or removed.
  returned: always
  type: list
  elements: str
  sample: [/opt/pi-llm/current]
links:
  description: What the links of both snapshots refer to; such releases must stay on the disk.
  returned: always
  type: list
  elements: str
  sample: [releases/0.1.0-5d41402a]
refers_to:
  description: Of each snapshot, its links by their paths.
  returned: always
  type: dict
  sample: {proven: {/opt/ollama/current: releases/0.34.4-96f50a11}, previous: {}}
"""

FILE_BYTES_MAX = 1 << 20  # units and settings are some kilobytes; data does not belong into a snapshot
FORMAT = 1
NONE_YET = {
    "proven": "nothing on this node has been seen to serve yet",
    "previous": "no deployment of this node has been followed by another yet",
}


class Entry(TypedDict, total=False):
    """A path as it was. `kind` is file, link or absent; the others are there when they mean something."""

    kind: str
    mode: int
    owner: str
    group: str
    content: str  # base64
    target: str


Part = dict[str, Entry]  # by path
Snapshot = dict[str, Part]  # by name


class Snapshots(TypedDict):
    """All that is remembered."""

    format: int
    proven: Snapshot | None
    previous: Snapshot | None
    unproven: list[str]  # parts whose services may have been started with something that is not proven


class DeploymentError(Exception):
    """A sentence for who runs the play."""


def compared(root: Path, parts: dict[str, list[str]]) -> dict[str, Any]:
    """Tell which parts differ on the disk from the proven snapshot."""
    kept = _load(root)
    return _answer(kept, changed_parts=_to_restart(kept, parts))


def begun(root: Path, parts: dict[str, list[str]], *, check: bool) -> dict[str, Any]:
    """Tell the same, and remember that these parts are about to restart, whatever becomes of this run."""
    kept = _load(root)
    changed_parts = _to_restart(kept, parts)
    unproven = sorted({*kept["unproven"], *changed_parts})
    if unproven != kept["unproven"] and not check:
        kept["unproven"] = unproven
        _save(root, kept)
    return _answer(kept, changed_parts=changed_parts)


def proven(root: Path, parts: dict[str, list[str]], *, check: bool) -> dict[str, Any]:
    """Make the disk as it is now the proven snapshot, and the proven one the previous; nothing if they are the same.

    After going back there is no previous one: going back again, also in a run that finishes a killed one, would
    otherwise lead to where one came from.
    """
    kept = _load(root)
    before = kept["proven"] or {}
    now = before | {name: _read_part(paths) for name, paths in parts.items()}
    changed_parts = _changed(kept["proven"], parts)
    unproven = [name for name in kept["unproven"] if name not in parts]
    if (now != before or unproven != kept["unproven"]) and not check:
        previous = kept["proven"] if changed_parts else kept["previous"]  # only the lists of paths became other ones
        if changed_parts and now == kept["previous"]:
            previous = None
        kept = Snapshots(format=FORMAT, proven=now, previous=previous, unproven=unproven)
        _save(root, kept)
    return _answer(kept, changed_parts=changed_parts, changed=now != before, diff=_diff(_flat(before), _flat(now)))


def restored(root: Path, parts: dict[str, list[str]], source: str, *, check: bool) -> dict[str, Any]:
    """Put a snapshot's files and links back. Raises: DeploymentError when there is no such snapshot or part."""
    kept = _load(root)
    snapshot = kept["proven"] if source == "proven" else kept["previous"]
    if snapshot is None:
        raise DeploymentError(f"there is no {source} deployment in {root} to go back to: {NONE_YET[source]}.")
    unknown = sorted(parts.keys() - snapshot.keys())
    if unknown:
        raise DeploymentError(
            f"the {source} deployment in {root} knows no {', '.join(unknown)}; it knows {', '.join(sorted(snapshot))}."
        )
    chosen = {name: snapshot[name] for name in parts or snapshot}
    wanted = _flat(chosen)
    is_now = {path: _read(path) for path in wanted}
    differing = [path for path in wanted if wanted[path] != is_now[path]]
    changed_parts = [name for name, part in chosen.items() if not part.keys().isdisjoint(differing)]
    if not check:
        for path in differing:
            _write(Path(path), wanted[path])
    diff = _diff({path: is_now[path] for path in differing}, {path: wanted[path] for path in differing})
    return _answer(kept, changed_parts=changed_parts, restored=differing, changed=bool(differing), diff=diff)


def _to_restart(kept: Snapshots, parts: dict[str, list[str]]) -> list[str]:
    changed_parts = _changed(kept["proven"], parts)
    return [name for name in parts if name in changed_parts or name in kept["unproven"]]


def _changed(snapshot: Snapshot | None, parts: dict[str, list[str]]) -> list[str]:
    """Names of the parts that differ. A path that either side does not know counts as absent there."""
    if snapshot is None:
        return list(parts)
    return [name for name, paths in parts.items() if _differs(snapshot.get(name), paths)]


def _differs(kept: Part | None, paths: list[str]) -> bool:
    if kept is None:
        return True
    return any(_read(path) != kept.get(path, Entry(kind="absent")) for path in {*paths, *kept})


def _read_part(paths: list[str]) -> Part:
    return {path: _read(path) for path in sorted(set(paths))}


def _read(path: str) -> Entry:
    """The file or link at a path as it is. Raises: DeploymentError if it is something else, or too large."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Entry(kind="absent")
    names = Entry(owner=_name(status.st_uid, pwd.getpwuid), group=_name(status.st_gid, grp.getgrgid))
    if stat.S_ISLNK(status.st_mode):
        return names | Entry(kind="link", target=os.readlink(path))
    if not stat.S_ISREG(status.st_mode):
        raise DeploymentError(f"{path} is neither a file nor a link; a deployment's parts are files and links.")
    if status.st_size > FILE_BYTES_MAX:
        raise DeploymentError(
            f"{path} has {status.st_size} bytes, and a snapshot takes files of {FILE_BYTES_MAX} at most; "
            "name the link that leads to it instead."
        )
    content = base64.b64encode(Path(path).read_bytes()).decode()
    return names | Entry(kind="file", mode=stat.S_IMODE(status.st_mode), content=content)


def _name(number: int, lookup: Callable[[int], Any]) -> str:
    """An owner by name, for numbers differ after a user was made anew; a number whose name is gone stays one."""
    try:
        return str(lookup(number)[0])
    except KeyError:
        return str(number)


def _number(name: str, lookup: Callable[[str], Any]) -> int:
    try:
        return int(lookup(name)[2])
    except KeyError:
        if name.isdigit():
            return int(name)
        raise DeploymentError(f"the snapshot's owner or group {name} is not on this node any more.") from None


def _write(path: Path, entry: Entry) -> None:
    """Make one path what the entry says, whole or not at all."""
    draft = _draft(path)
    draft.unlink(missing_ok=True)
    if entry["kind"] == "absent":
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _fsync_directory(path.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    uid, gid = _number(entry["owner"], pwd.getpwnam), _number(entry["group"], grp.getgrnam)
    if entry["kind"] == "link":
        draft.symlink_to(entry["target"])
        os.lchown(draft, uid, gid)
    else:
        _write_file(draft, base64.b64decode(entry["content"]), entry["mode"], uid, gid)
    draft.replace(path)
    _fsync_directory(path.parent)


def _write_file(path: Path, content: bytes, mode: int, uid: int, gid: int) -> None:
    """A new file on the disk itself, that nobody can read before its owner and mode are right."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.fchown(file.fileno(), uid, gid)  # before the mode: it would clear set-id bits
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _draft(path: Path) -> Path:
    """Always the same name, so that what a power cut left is found and goes with the next write."""
    return path.with_name(f".{path.name}.deployment")


def _fsync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _load(root: Path) -> Snapshots:
    """What is remembered. Raises: DeploymentError when the file is none of ours."""
    path = root / "snapshots.json"
    try:
        kept: Snapshots = json.loads(path.read_text())
        is_format = kept["format"]
    except (FileNotFoundError, NotADirectoryError):
        return Snapshots(format=FORMAT, proven=None, previous=None, unproven=[])
    except (ValueError, TypeError, KeyError):
        raise DeploymentError(f"{path} is damaged; move it away: the next deployment makes a new one.") from None
    if is_format != FORMAT:
        raise DeploymentError(
            f"{path} has format {is_format}, and this reads {FORMAT}; use the release of the fleet that wrote it, "
            "or move it away: the next deployment makes a new one."
        )
    kept.setdefault("unproven", [])  # it came later than the format
    return kept


def _save(root: Path, kept: Snapshots) -> None:
    for directory in (root.parent, root):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = root / "snapshots.json"
    draft = _draft(path)
    draft.unlink(missing_ok=True)
    _write_file(draft, json.dumps(kept, sort_keys=True).encode(), 0o600, os.geteuid(), os.getegid())
    draft.replace(path)
    _fsync_directory(root)


def _flat(snapshot: Snapshot) -> Part:
    """Every path of every part once."""
    return {path: entry for part in snapshot.values() for path, entry in part.items()}


def _diff(before: Part, after: Part) -> dict[str, str]:
    """What differs, in words without secrets: of a file's content only that it is another one."""
    paths = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    return {"before": _lines(paths, before, "before"), "after": _lines(paths, after, "after")}


def _lines(paths: Iterable[str], entries: Part, side: str) -> str:
    return "".join(f"{path}: {_in_words(entries.get(path), side)}\n" for path in paths)


def _in_words(entry: Entry | None, side: str) -> str:
    if entry is None or entry["kind"] == "absent":
        return "absent"
    owner = f"{entry['owner']}:{entry['group']}"
    if entry["kind"] == "link":
        return f"-> {entry['target']} {owner}"
    return f"file {entry['mode']:04o} {owner} (content {side})"


def _answer(kept: Snapshots, **more: Any) -> dict[str, Any]:
    return {
        "changed": False,
        "changed_parts": [],
        "restored": [],
        "has_proven": kept["proven"] is not None,
        "has_previous": kept["previous"] is not None,
        "links": sorted({*_links(kept["proven"]).values(), *_links(kept["previous"]).values()}),
        "refers_to": {"proven": _links(kept["proven"]), "previous": _links(kept["previous"])},
        "lost": sorted(_lost(kept["previous"])),
        **more,
    }


def _links(snapshot: Snapshot | None) -> dict[str, str]:
    """What each link refers to, by its path."""
    return {path: entry["target"] for path, entry in _flat(snapshot or {}).items() if entry["kind"] == "link"}


def _lost(snapshot: Snapshot | None) -> Iterator[str]:
    """What links lead to and is not there."""
    for path, named in _links(snapshot).items():
        if not (target := Path(path).parent / named).exists():
            yield str(target)


def _checked_parts(given: dict[str, Any], state: str) -> dict[str, list[str]]:
    """The option `parts`, with its types. Raises: DeploymentError."""
    if state != "restored" and not given:
        raise DeploymentError(f"state={state} needs parts: names, each with a list of absolute paths.")
    for name, paths in given.items():
        if not isinstance(paths, list) or not all(isinstance(path, str) and path.startswith("/") for path in paths):
            raise DeploymentError(f"parts.{name} is {paths!r}; it must be a list of absolute paths.")
    return given


def _done(params: dict[str, Any], *, check: bool) -> dict[str, Any]:
    root, parts = Path(params["root"]), _checked_parts(params["parts"], params["state"])
    if params["state"] == "compared":
        return compared(root, parts)
    if params["state"] == "begun":
        return begun(root, parts, check=check)
    if params["state"] == "proven":
        return proven(root, parts, check=check)
    return restored(root, parts, params["from"], check=check)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["compared", "begun", "proven", "restored"]},
            "parts": {"type": "dict", "default": {}},
            "from": {"type": "str", "default": "proven", "choices": ["proven", "previous"]},
            "root": {"type": "path", "default": "/var/lib/pi-llm-fleet/deployment"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # a directory of units must be readable, whatever the login's umask
    try:
        answer = _done(module.params, check=module.check_mode)
    except DeploymentError as error:
        module.fail_json(msg=f"deployment: {error}")
    except OSError as error:
        module.fail_json(
            msg=f"deployment: {error.filename or 'the disk'}: {error.strerror}; root must be able to write it."
        )
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
