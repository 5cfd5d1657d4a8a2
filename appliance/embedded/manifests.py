"""Names of models and the manifests that describe them, as Ollama writes and reads both. Pure: knows no file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

MODEL = "application/vnd.ollama.image.model"
HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"

_PART = re.compile(r"\w[\w.-]{0,79}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class ModelName:
    """A name with all that Ollama fills in: `qwen2.5:3b` is registry.ollama.ai/library/qwen2.5:3b."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Raises: ValueError when no model can be called so."""
        *before, last = text.split("/")
        model, _, tag = last.partition(":")
        host, namespace = [*(HOST, NAMESPACE)[: 2 - len(before)], *before][:2]
        name = cls(host, namespace, model, tag or TAG)
        if len(before) > 2 or not all(_PART.fullmatch(part) for part in (*host.split(":"), namespace, model, name.tag)):
            raise ValueError(f"{text!r} is no name of a model; write it as NAME:TAG")
        return name

    @property
    def path(self) -> PurePosixPath:
        """Where its manifest lies under `manifests/`."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        """The shortest form."""
        if self.host != HOST:
            return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        return (
            f"{self.model}:{self.tag}" if self.namespace == NAMESPACE else f"{self.namespace}/{self.model}:{self.tag}"
        )

    def as_in(self, other: ModelName) -> ModelName:
        """This name, with the parts that differ from the other's by case only spelled as there."""
        fields = ("host", "namespace", "model", "tag")
        pairs = {field: (getattr(self, field), getattr(other, field)) for field in fields}
        return replace(
            self, **{f: theirs for f, (ours, theirs) in pairs.items() if ours.casefold() == theirs.casefold()}
        )


@dataclass(frozen=True)
class Layer:
    """One blob of a model: what it is, `sha256:<hex>`, and its size in bytes."""

    media_type: str
    digest: str
    size: int

    @classmethod
    def parse(cls, value: object) -> Layer:
        """Raises: ValueError."""
        if not isinstance(value, dict) or not _DIGEST.fullmatch(str(value.get("digest"))):
            raise ValueError("invalid digest format")
        return cls(str(value.get("mediaType", "")), value["digest"], int(value.get("size", 0)))


@dataclass(frozen=True)
class Manifest:
    """What a model consists of. digest: sha256 of the manifest's own bytes, by which Ollama tells versions apart."""

    digest: str
    config: Layer
    layers: tuple[Layer, ...]

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Raises: ValueError with Ollama's text."""
        if not data.strip():
            raise ValueError("EOF")
        try:
            value = json.loads(data.decode("utf-8", "replace"))
            config, layers = Layer.parse(value["config"]), tuple(Layer.parse(item) for item in value["layers"])
        except (KeyError, TypeError, RecursionError):
            raise ValueError("json: cannot unmarshal into Go value of type manifest.Manifest") from None
        except json.JSONDecodeError as error:
            raise ValueError(_syntax_error(error)) from None
        return cls(hashlib.sha256(data).hexdigest(), config, layers)

    def __iter__(self) -> Iterator[Layer]:
        """All its blobs, in the order in which they are pulled."""
        return iter((*self.layers, self.config))

    @property
    def size(self) -> int:
        """Bytes of all its blobs."""
        return sum(layer.size for layer in self)

    @property
    def model(self) -> Layer | None:
        """The layer that holds the GGUF file."""
        return next((layer for layer in self.layers if layer.media_type == MODEL), None)


def _syntax_error(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    return f"invalid character {error.doc[error.pos]!r} looking for beginning of value"
