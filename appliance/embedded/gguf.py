"""The facts in a GGUF file's header, and the model as Ollama's API describes it. Knows no engine.

Format: ggml's docs/gguf.md. Arrays are skipped and kept as None, as Ollama shows them: vocabularies are large.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from appliance.embedded.errors import SetupProblem

_SCALAR = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_QUANTIZATION = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M",
    18: "Q6_K", 32: "BF16",
}  # fmt: skip


def _scalar(file: BinaryIO, code: str) -> Any:
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_scalar(file, "<Q")).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _scalar(file, _SCALAR[kind])
    item_kind, count = _scalar(file, "<I"), _scalar(file, "<Q")
    if item_kind != _STRING:
        file.seek(count * struct.calcsize(_SCALAR[item_kind]), 1)
        return None
    for _ in range(count):
        file.seek(_scalar(file, "<Q"), 1)
    return None


def _parameter_count(file: BinaryIO, tensors: int) -> int:
    total = 0
    for _ in range(tensors):
        _text(file)
        size = 1
        for _ in range(_scalar(file, "<I")):
            size *= _scalar(file, "<Q")
        total += size
        file.seek(12, 1)  # the tensor's type and offset
    return total


def read_header(path: Path) -> dict[str, Any]:
    """The key/value block of a GGUF file, and `general.parameter_count` summed over its tensors.

    Raises: SetupProblem when the file cannot be read or is no GGUF.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SetupProblem(f"{path} is not a GGUF file; give another with --model NAME:TAG=FILE.gguf")
            _scalar(file, "<I")  # the format's version; 2 and 3 read alike
            tensors, pairs = _scalar(file, "<Q"), _scalar(file, "<Q")
            header = {_text(file): _value(file, _scalar(file, "<I")) for _ in range(pairs)}
            header["general.parameter_count"] = _parameter_count(file, tensors)
            return header
    except (OSError, struct.error, KeyError, MemoryError, OverflowError) as error:
        raise SetupProblem(
            f"the model file {path} cannot be read ({error!r}); give another with --model NAME:TAG=FILE.gguf"
        ) from None


def human_count(count: int) -> str:
    """A parameter count as Ollama writes it: 3.1B, 134.52M."""
    if count >= 10**9:
        return f"{count / 1e9:.1f}B"
    if count >= 10**6:
        return f"{count / 1e6:.2f}M"
    return f"{count / 1e3:.0f}K" if count >= 10**3 else str(count)


@dataclass(frozen=True, eq=False)
class Model:
    """One model file under the name it is served by."""

    name: str
    path: Path
    header: dict[str, Any]

    @classmethod
    def open(cls, name: str, path: Path) -> Model:
        """Raises: SetupProblem."""
        return cls(name if ":" in name else f"{name}:latest", path, read_header(path))

    def fact(self, key: str, default: Any = None) -> Any:
        """A value of the header under the model's architecture, such as `context_length`."""
        return self.header.get(f"{self.family}.{key}", default)

    @property
    def family(self) -> str:
        return str(self.header.get("general.architecture", "unknown"))

    @property
    def trained_ctx(self) -> int:
        return int(self.fact("context_length", 2**31))

    @property
    def chat_template(self) -> str:
        return str(self.header.get("tokenizer.chat_template", ""))

    @property
    def adds_bos(self) -> bool:
        return bool(self.header.get("tokenizer.ggml.add_bos_token", False))

    @property
    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": human_count(self.header["general.parameter_count"]),
            "quantization_level": _QUANTIZATION.get(self.header.get("general.file_type", -1), "unknown"),
        }

    @cached_property
    def size(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def modified_at(self) -> str:
        return datetime.fromtimestamp(self.path.stat().st_mtime, UTC).isoformat()

    @cached_property
    def digest(self) -> str:
        """sha256 of the model file. (Ollama's is of its manifest; here there is none.)"""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def full_name(name: str) -> str:
    """The name with what Ollama fills in taken off and put in: `library/x` and `x` are both `x:latest`."""
    short = name.casefold().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return short if ":" in short else f"{short}:latest"
