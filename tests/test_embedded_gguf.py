"""The header of a GGUF file is read, and what is none is refused with the remedy."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from appliance.embedded.errors import SetupProblem
from appliance.embedded.gguf import Model, full_name, human_count

U32, STRING, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(pairs: dict[str, tuple[int, bytes]], tensors: list[tuple[int, ...]] = ()) -> bytes:  # type: ignore[assignment]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    body = b"".join(text(key) + struct.pack("<I", kind) + value for key, (kind, value) in pairs.items())
    for shape in tensors:
        body += text("t") + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        body += struct.pack("<IQ", 0, 0)
    return head + body


SMALL = gguf(
    {
        "general.architecture": (STRING, text("llama")),
        "general.file_type": (U32, struct.pack("<I", 15)),
        "llama.context_length": (U32, struct.pack("<I", 2048)),
        "tokenizer.ggml.tokens": (ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b")),
        "tokenizer.ggml.scores": (ARRAY, struct.pack("<IQ", U32, 2) + bytes(8)),
    },
    tensors=[(64, 100), (600,)],
)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(SMALL)
    return path


def test_it_tells_what_ollama_tells_of_a_model(small: Path) -> None:
    model = Model.open("small", small)
    assert model.name == "small:latest"
    assert model.trained_ctx == 2048
    assert model.details["family"] == "llama"
    assert model.details["quantization_level"] == "Q4_K_M"
    assert model.details["parameter_size"] == "7K"
    assert model.size == len(SMALL)


def test_arrays_are_null_as_in_ollamas_show(small: Path) -> None:
    assert Model.open("small", small).header["tokenizer.ggml.tokens"] is None


@pytest.mark.parametrize("content", [b"", b"hello, I am a text", SMALL[:40], b"GGUF" + b"\xff" * 40])
def test_a_file_that_is_no_gguf_is_refused_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(SetupProblem, match=r"broken\.gguf.*--model NAME:TAG=FILE\.gguf"):
        Model.open("x", path)


def test_a_missing_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SetupProblem, match="--model"):
        Model.open("x", tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("count", "shown"), [(134_515_008, "134.52M"), (3_085_938_688, "3.1B"), (999, "999"), (7000, "7K")]
)
def test_parameters_are_counted_as_ollama_writes_them(count: int, shown: str) -> None:
    assert human_count(count) == shown


def test_names_that_mean_the_same_model_are_the_same() -> None:
    names = ["smollm2:135m", "library/smollm2:135m", "registry.ollama.ai/library/smollm2:135m", "SmolLM2:135M"]
    assert {full_name(name) for name in names} == {"smollm2:135m"}
    assert full_name("smollm2") == "smollm2:latest"
