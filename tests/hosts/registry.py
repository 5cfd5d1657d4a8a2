"""The models that a test host can pull: a folder laid out as an Ollama store, here as names and contents.

A member of an archive or a folder is bytes, or a file of this machine whose content it has.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from appliance.embedded.gguf import Model

Members = dict[str, bytes | Path]

FIRST, SECOND = "smollm2:135m", "smollm2:135m-licensed"  # the second is the first with one small blob more
_LICENCE = b"Apache License, Version 2.0\n"
_TYPE = "application/vnd.ollama.image."
_TEMPLATE = b"{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
_PARAMS = {"stop": ["<|im_start|>", "<|im_end|>"]}


def members(gguf: Path) -> Members:
    """All files of the registry, by their paths in it."""
    model = Model.open(FIRST, gguf)
    details = model.details
    config = {
        "model_format": "gguf",
        "model_family": model.family,
        "model_families": [model.family],
        "model_type": details["parameter_size"],
        "file_type": details["quantization_level"],
        "architecture": "amd64",
        "os": "linux",
    }
    layers: list[tuple[str, bytes | Path]] = [
        (f"{_TYPE}model", gguf),
        (f"{_TYPE}template", _TEMPLATE),
        (f"{_TYPE}params", _compact(_PARAMS)),
    ]
    licensed: list[tuple[str, bytes | Path]] = [*layers, (f"{_TYPE}license", _LICENCE)]
    return {**_model(FIRST, config, layers), **_model(SECOND, config, licensed)}


def manifest_path(name: str) -> str:
    """Where the manifest of NAME:TAG lies."""
    return "manifests/registry.ollama.ai/library/" + name.replace(":", "/")


def digest(members: Mapping[str, bytes | Path], name: str) -> str:
    """What /api/tags shows, and an inventory may pin."""
    return _sha256(members[manifest_path(name)])


def write(members: Mapping[str, bytes | Path], directory: Path) -> None:
    """Make the folder."""
    for name, content in members.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)


def _model(name: str, config: Mapping[str, object], layers: list[tuple[str, bytes | Path]]) -> Members:
    first = ("application/vnd.docker.container.image.v1+json", _compact(config))
    described = [_layer(media_type, content) for media_type, content in (first, *layers)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": described[0],
        "layers": described[1:],
    }
    blobs = {f"blobs/sha256-{_sha256(content)}": content for _, content in (first, *layers)}
    return {**blobs, manifest_path(name): _compact(manifest)}


def _layer(media_type: str, content: bytes | Path) -> dict[str, object]:
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    return {"mediaType": media_type, "digest": f"sha256:{_sha256(content)}", "size": size}


def _compact(value: object) -> bytes:
    """As Ollama's encoder writes it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").encode() + b"\n"


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
