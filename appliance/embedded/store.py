"""The files of an Ollama store: blobs and manifests, where they lie, and what is looked at when. Knows no GGUF.

    blobs/sha256-<64 hex>                                    a model file, a template, a configuration, …
    blobs/sha256-<64 hex>-partial, …-partial-0               a pull that has not ended, and how far it came
    manifests/registry.ollama.ai/library/<model>/<tag>       a model: the list of its blobs

Manifests are read anew for each request, so a model that somebody copies in, blobs first, is served without a
restart. Nothing checks a blob against its name but the pull that made it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.embedded.errors import EngineError, SetupProblem
from appliance.embedded.manifests import Manifest, ModelName


def go_error(operation: str, path: Path, error: OSError) -> str:
    """The error as Go tells it: `open /x/y: permission denied`."""
    return f"{operation} {path}: {(error.strerror or str(error)).lower()}"


@dataclass(frozen=True)
class Store:
    """One store."""

    directory: Path

    def prepare(self) -> None:
        """Make the folders. Raises: SetupProblem with Ollama's text."""
        for folder in (self.directory / "blobs", self.directory / "manifests"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                where = Path(error.filename or folder)
                raise SetupProblem(f"{go_error('mkdir', where, error)}: ensure path elements are traversable") from None

    def blob(self, digest: str) -> Path:
        """Where the blob `sha256:<hex>` lies, or would."""
        return self.directory / "blobs" / digest.replace(":", "-")

    def manifest_path(self, name: ModelName) -> Path:
        return self.directory / "manifests" / name.path

    def manifest(self, name: ModelName) -> Manifest | None:
        """The manifest, or None when there is none. Raises: EngineError 500 when it cannot be read."""
        path = self.manifest_path(name)
        try:
            return Manifest.parse(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise EngineError(500, go_error("open", path, error)) from None
        except ValueError as error:
            raise EngineError(500, str(error)) from None

    def manifests(self) -> dict[ModelName, Manifest]:
        """All that can be read; those that cannot are told on stderr and left out."""
        found = {}
        for path in sorted((self.directory / "manifests").glob("*/*/*/*")):
            try:
                host, namespace, model, tag = path.parts[-4:]
                name = ModelName.parse(f"{host}/{namespace}/{model}:{tag}")
                manifest = self.manifest(name)
            except (ValueError, EngineError) as error:
                print(f'engine: msg="bad manifest" name={path} error="{error}"', file=sys.stderr, flush=True)
                continue
            if manifest is not None:
                found[name] = manifest
        return found

    def spelled(self, name: ModelName) -> ModelName:
        """The name in the spelling of what is here."""
        for other in self.manifests():
            name = name.as_in(other)
        return name

    def delete(self, name: ModelName) -> bool:
        """Remove the model, and its blobs as far as no other uses them.

        Returns: whether it was here. Raises: EngineError 500, also when its manifest cannot be read.
        """
        manifest = self.manifest(name)
        if manifest is None:
            return False
        path = self.manifest_path(name)
        try:
            path.unlink()
            for folder in path.parents[:4]:
                if any(folder.iterdir()):
                    break
                folder.rmdir()
        except OSError as error:
            raise EngineError(500, go_error("remove", path, error)) from None
        self.remove_unused(layer.digest for layer in manifest)
        return True

    def remove_unused(self, digests: Iterable[str]) -> None:
        """Remove those of the blobs that no model uses."""
        used = {layer.digest for manifest in self.manifests().values() for layer in manifest}
        for digest in set(digests) - used:
            try:
                self.blob(digest).unlink(missing_ok=True)
            except OSError as error:
                raise EngineError(500, go_error("remove", self.blob(digest), error)) from None
