#!/usr/bin/python
"""Reads a store of Ollama's models on the disk, and puts models into it that came another way than by a pull.

Knows the layout (blobs/sha256-<hex>, manifests/<host>/<namespace>/<model>/<tag>) and nothing of Ollama's API: a store
is a folder on a node, and as well one on the controller.

The decision list of `put_in`:
1. Take each blob that arrived only if it is what its name says; one that is not is removed, and the task fails.
2. Rename it among the others. Cut here, the store has blobs that nobody uses yet, and the next run needs fewer.
3. Write the manifest last: a model that Ollama can see is whole.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, TypedDict

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_store
short_description: Read a store of Ollama's models, or put a copied model into it
description:
  - V(read) says whether a model is in the store, with its manifest and what blobs it needs. It changes nothing.
  - V(missing) says which blobs of a manifest the store has not. It changes nothing.
  - V(present) takes blobs that were copied into I(incoming), verifies each, and makes them a model.
  - Ollama sees a model that was put in without a restart.
options:
  path:
    description: The store, as OLLAMA_MODELS names it.
    type: path
    required: true
  name:
    description: The model, such as C(qwen2.5:3b).
    type: str
    required: true
  state:
    description: What to do.
    type: str
    default: read
    choices: [read, missing, present]
  digest:
    description: The sha256 that the model's manifest must have, in hex; empty takes any.
    type: str
    default: ""
  manifest:
    description: The manifest in base64, as V(read) returns it. Needed for V(missing) and V(present).
    type: str
    default: ""
  incoming:
    description: The folder on the store's disk where blobs arrive; V(present) removes it. C(path/incoming) by default.
    type: path
  owner:
    description: The user and group that get what is written; empty leaves it to who runs this.
    type: str
    default: ""
  leftovers:
    description: The folder in the home of the ssh user in which copies arrive; V(present) empties it.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Read what the controller has
  ollama_store:
    path: ~/.ollama/models
    name: qwen2.5:3b
  delegate_to: localhost
  register: source

- name: Make a model of what was copied
  ollama_store:
    state: present
    path: /var/lib/ollama/models
    name: qwen2.5:3b
    manifest: "{{ source.manifest }}"
    owner: ollama
"""

RETURN = r"""
is_whole:
  description: Whether the model is there with all its blobs, and is the pinned one where one is pinned.
  type: bool
  returned: success
problem:
  description: Why it is not whole.
  type: str
  returned: success
digest:
  description: The sha256 of the manifest; empty when there is none.
  type: str
  returned: success
manifest:
  description: The manifest in base64.
  type: str
  returned: success
blobs:
  description: The files under C(blobs) that the model needs.
  type: list
  elements: dict
  returned: success
  sample: [{file: sha256-66b9ea09bd5b7099cbb4fc820f31b575c0366fa439b08245566692c6784e281e, size_bytes: 68}]
is_fetchable:
  description: Whether the ssh user, without becoming root, can read the blobs that are there.
  type: bool
  returned: success
missing:
  description: Those of them that the store has not, or not in their full size.
  type: list
  elements: dict
  returned: success
"""

DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")


class Blob(TypedDict):
    file: str
    size_bytes: int


class StoreRefused(Exception):
    """What was brought is not what was asked for; the store has no part of it."""


def manifest_path(store: Path, name: str) -> Path:
    """Where the manifest of a model is, after Ollama's defaults for what a name leaves out."""
    path, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in (*parts, tag)) or len(parts) > 3:
        raise StoreRefused(f"{name!r} is no name of a model; it looks like qwen2.5:3b or host/namespace/model:tag.")
    host, namespace, model = (["registry.ollama.ai", "library"][: 3 - len(parts)] + parts)[-3:]
    return store / "manifests" / host / namespace / model / tag


def blobs_of(manifest: bytes) -> list[Blob]:
    """The blobs of a manifest, each once. Raises: StoreRefused when it is none."""
    try:
        document = json.loads(manifest)
        layers = [document["config"], *document["layers"]]
        sizes = {str(layer["digest"]): int(layer["size"]) for layer in layers}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreRefused(f"The manifest is not one of Ollama's: {error!r}.") from error
    wrong = [digest for digest in sizes if not DIGEST.fullmatch(digest)]
    if wrong:
        raise StoreRefused(f"The manifest names a blob {wrong[0]!r}, which is no sha256.")
    return [Blob(file=digest.replace(":", "-"), size_bytes=size) for digest, size in sizes.items()]


def missing(store: Path, blobs: list[Blob]) -> list[Blob]:
    return [blob for blob in blobs if not has(store / "blobs" / blob["file"], blob["size_bytes"])]


def has(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False


class Reading(TypedDict):
    """What a store says about a model; `problem` is empty when it can be served."""

    is_whole: bool
    problem: str
    digest: str
    manifest: str
    blobs: list[Blob]
    missing: list[Blob]
    is_fetchable: bool


def absent(problem: str) -> Reading:
    return Reading(is_whole=False, problem=problem, digest="", manifest="", blobs=[], missing=[], is_fetchable=False)


def is_readable(paths: list[Path], user: str) -> bool:
    """Whether a user, with all groups, can read these files."""
    person = pwd.getpwnam(user)
    test = ["sh", "-c", 'for file; do test -r "$file" || exit 1; done', "sh", *map(str, paths)]
    groups = os.getgrouplist(user, person.pw_gid)
    asked = subprocess.run(test, user=person.pw_uid, group=person.pw_gid, extra_groups=groups, check=False)
    return asked.returncode == 0


def is_fetchable(store: Path, blobs: list[Blob]) -> bool:
    user = os.environ.get("SUDO_USER")  # the ssh user, where ansible became root by sudo
    return os.geteuid() != 0 or not user or is_readable([store / "blobs" / blob["file"] for blob in blobs], user)


def read(store: Path, name: str, digest: str) -> Reading:
    try:
        manifest = manifest_path(store, name).read_bytes()
        blobs = blobs_of(manifest)
    except (FileNotFoundError, NotADirectoryError):
        return absent(f"{store} has no model {name}")
    except StoreRefused as refused:
        return absent(str(refused))
    found, lacks = hashlib.sha256(manifest).hexdigest(), missing(store, blobs)
    problem = f"{name} lacks {len(lacks)} of its {len(blobs)} blobs" if lacks else ""
    if digest and found != digest:
        problem = f"{name} has the digest {found}, and model_digest pins {digest}"
    encoded = base64.b64encode(manifest).decode()
    return Reading(
        is_whole=not problem,
        problem=problem,
        digest=found,
        manifest=encoded,
        blobs=blobs,
        missing=lacks,
        is_fetchable=is_fetchable(store, [blob for blob in blobs if blob not in lacks]),
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def take_in(store: Path, incoming: Path, blob: Blob, owner: str) -> None:
    """Verify one blob that arrived and rename it among the others."""
    arrived = incoming / blob["file"]
    if not arrived.is_file():
        raise StoreRefused(f"The blob {blob['file']} did not arrive in {arrived.parent}.")
    found = f"sha256-{sha256_of(arrived)}"
    if found != blob["file"]:
        raise StoreRefused(
            f"A blob that should be {blob['file']} arrived as {found}. It was removed and the model was not put in. "
            "Where it came from is damaged: check its disk, and remove the model there to fetch it anew. With "
            "model_source node that is the controller's model_cache_dir, or the store of model_source_node."
        )
    settle(arrived, store / "blobs" / blob["file"], owner)


def settle(made: Path, path: Path, owner: str) -> None:
    """Give a file its owner, have it written to the disk, then give it its name."""
    make_directories(path.parent, owner)
    made.chmod(0o644)
    give(made, owner)
    handle = os.open(made, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    made.rename(path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def make_directories(path: Path, owner: str) -> None:
    for directory in reversed([path, *path.parents]):
        if not directory.exists():
            directory.mkdir(mode=0o755)
            give(directory, owner)


def give(path: Path, owner: str) -> None:
    if owner:
        shutil.chown(path, owner, owner)


def put_in(store: Path, incoming: Path, name: str, manifest: bytes, owner: str) -> None:
    """Make a model of what arrived, as the decision list above says."""
    for blob in missing(store, blobs_of(manifest)):
        take_in(store, incoming, blob, owner)
    path = manifest_path(store, name)
    make_directories(incoming, owner)
    made = incoming / "manifest"
    made.write_bytes(manifest)
    settle(made, path, owner)


def arrives_in(wanted: dict[str, Any]) -> Path:
    return Path(wanted.get("incoming") or Path(wanted["path"]) / "incoming")


def clean(incoming: Path, leftovers: str) -> None:
    """Nothing half is kept, neither here nor where ssh put it."""
    shutil.rmtree(incoming, ignore_errors=True)
    if leftovers:
        user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
        shutil.rmtree(Path(pwd.getpwnam(user).pw_dir) / leftovers, ignore_errors=True)


def apply(wanted: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do what is wanted. Returns: what the task reports."""
    store, name, digest = Path(wanted["path"]), wanted["name"], wanted["digest"]
    if wanted["state"] == "read":
        return {"changed": False, **read(store, name, digest)}
    manifest = base64.b64decode(wanted["manifest"])
    found = hashlib.sha256(manifest).hexdigest()
    if digest and found != digest:
        raise StoreRefused(f"{name} has the digest {found} where it comes from, and model_digest pins {digest}.")
    lacks = missing(store, blobs_of(manifest))
    if wanted["state"] == "missing":
        return {"changed": False, "missing": lacks, "digest": found}
    if read(store, name, found)["is_whole"]:
        return {"changed": False, **read(store, name, found)}
    if check_mode:
        size_mib = sum(blob["size_bytes"] for blob in lacks) // 2**20
        return {"changed": True, "msg": f"would copy {len(lacks)} blobs of {name}, {size_mib} MiB", "digest": found}
    put_in(store, arrives_in(wanted), name, manifest, wanted["owner"])
    return {"changed": True, **read(store, name, found)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "default": "read", "choices": ["read", "missing", "present"]},
            "digest": {"type": "str", "default": ""},
            "manifest": {"type": "str", "default": ""},
            "incoming": {"type": "path"},
            "owner": {"type": "str", "default": ""},
            "leftovers": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        result = apply(module.params, module.check_mode)
    except StoreRefused as refused:
        module.fail_json(msg=str(refused))
    except OSError as error:
        module.fail_json(msg=f"The store {module.params['path']} cannot be used: {error}.")
    finally:
        if module.params["state"] == "present" and not module.check_mode:
            clean(arrives_in(module.params), module.params["leftovers"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
