"""The models that are served: one file that was given, or what is in a store.

A model is the same object for as long as its manifest is the same, since the runner tells by that what is loaded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.embedded.errors import EngineError, SetupProblem
from appliance.embedded.generation import go_time
from appliance.embedded.gguf import Model, full_name, read_header
from appliance.embedded.manifests import Manifest, ModelName
from appliance.embedded.pull import Records, Registry
from appliance.embedded.store import Store

NO_SUCH_MODEL = "pull model manifest: file does not exist"
_NOT_LISTED_ALONE = ("application/vnd.ollama.image.model", "application/vnd.ollama.image.license")


class Models(Protocol):
    """What the routes ask."""

    def all(self) -> Sequence[Model]:
        """What /api/tags lists."""

    def find(self, name: str, purpose: str) -> Model | None:
        """The model to show, or to generate or chat with. Raises: EngineError when it is here and of no use."""

    def pull(self, name: str, is_gone: Callable[[], bool]) -> Records:
        """The records of a pull. Raises: EngineError, ClientGone."""

    def delete(self, name: str) -> bool:
        """Whether it was here. Raises: EngineError."""


class OneModel:
    """A file that was given. It is here already when it is pulled, and nobody deletes it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def all(self) -> Sequence[Model]:
        return [self._model]

    def find(self, name: str, purpose: str) -> Model | None:
        return self._model if full_name(name) == full_name(self._model.name) else None

    def pull(self, name: str, is_gone: Callable[[], bool]) -> Records:
        """What Ollama answers when there is nothing to download."""
        yield {"status": "pulling manifest"}
        model = self.find(name, "pull")
        if model is None:
            raise EngineError(500, NO_SUCH_MODEL)
        blob = {"digest": f"sha256:{model.digest}", "total": model.size, "completed": model.size}
        yield {"status": f"pulling {model.digest[:12]}", **blob}
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            yield {"status": status}

    def delete(self, name: str) -> bool:
        if self.find(name, "delete") is None:
            return False
        raise EngineError(500, "this model was given with --model; only those of a --store are deleted")


@dataclass(frozen=True, eq=False)
class StoredModel(Model):
    """A model of a store. Its header is empty when its file is missing or no GGUF; it is listed all the same."""

    manifest_digest: str
    blobs_size: int
    written_at: str
    config: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the manifest."""
        return self.manifest_digest

    @property
    def size(self) -> int:
        return self.blobs_size

    @property
    def modified_at(self) -> str:
        return self.written_at

    @property
    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": self.config.get("model_format", ""),
            "family": self.config.get("model_family", ""),
            "families": self.config.get("model_families"),
            "parameter_size": self.config.get("model_type", ""),
            "quantization_level": self.config.get("file_type", ""),
        }


class StoredModels:
    """What is in a store, looked up anew for each request.

    registry: where pulls come from. removes_unused: after a pull, what an older version of the model leaves.
    """

    def __init__(self, store: Store, registry: Registry | None = None, removes_unused: bool = True) -> None:
        self._store = store
        self._registry = registry
        self._removes_unused = removes_unused
        self._known: dict[ModelName, StoredModel] = {}
        self._one_reads = threading.Lock()  # two that read at once would make two objects of one model

    def all(self) -> Sequence[Model]:
        """Those whose small blobs are here, newest first."""
        found = (self._model(name, manifest) for name, manifest in self._store.manifests().items())
        return sorted((model for model in found if model), key=lambda model: model.modified_at[:19], reverse=True)

    def find(self, name: str, purpose: str) -> Model | None:
        wanted = self._spelled(name)
        manifest = self._store.manifest(wanted)
        model = manifest and self._model(wanted, manifest)
        if not model:
            return None
        is_here = model.path.is_file()
        if purpose == "show":
            if is_here and not model.header:
                raise EngineError(500, "invalid file magic")
            return model if is_here else None
        if not is_here or not model.header:
            raise EngineError(400, f'"{name}" does not support {purpose}')
        return model

    def pull(self, name: str, is_gone: Callable[[], bool]) -> Records:
        if self._registry is None:
            yield {"status": "pulling manifest"}
            raise EngineError(500, NO_SUCH_MODEL)
        yield from self._registry.pull(self._spelled(name), self._store, is_gone, self._removes_unused)

    def delete(self, name: str) -> bool:
        return self._store.delete(self._spelled(name))

    def _spelled(self, name: str) -> ModelName:
        try:
            return self._store.spelled(ModelName.parse(name))
        except ValueError:
            raise EngineError(400, "invalid model name") from None

    def _model(self, name: ModelName, manifest: Manifest) -> StoredModel | None:
        """None when a blob is missing without which Ollama does not know the model."""
        with self._one_reads:
            known = self._known.get(name)
            if known and known.header and known.digest == manifest.digest:
                return known
            try:
                self._known[name] = self._read(name, manifest)
            except (OSError, ValueError):
                return None
            return self._known[name]

    def _read(self, name: ModelName, manifest: Manifest) -> StoredModel:
        """Raises: OSError, ValueError when a small blob is missing or broken."""
        config = json.loads(self._store.blob(manifest.config.digest).read_bytes())
        for layer in manifest.layers:
            if layer.media_type not in _NOT_LISTED_ALONE:
                self._store.blob(layer.digest).read_bytes()
        weights = manifest.model
        if weights is None or not isinstance(config, dict):
            raise ValueError("no model file in the manifest")
        path = self._store.blob(weights.digest)
        try:
            header = read_header(path)
        except SetupProblem:
            header = {}
        written_ns = self._store.manifest_path(name).stat().st_mtime_ns
        return StoredModel(str(name), path, header, manifest.digest, manifest.size, go_time(written_ns), config)
