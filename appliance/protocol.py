"""Ollama's words: what is asked, what a record says, and what its errors mean to our client. Pure; no sockets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from appliance.errors import (
    ApplianceError,
    EngineBusy,
    EngineFailed,
    EngineUnreachable,
    ModelMissing,
    PromptTooLong,
)

LOOPBACK = "127.0.0.1"
RETRY_S = 5
QUOTED_CHARS = 300  # of the engine's own words, in our errors and logs


@dataclass(frozen=True)
class LoadOptions:
    """What the engine loads the model with. Any difference between two requests makes Ollama reload it."""

    num_ctx: int
    num_thread: int
    num_batch: int


@dataclass(frozen=True)
class Prompt:
    """One generation to ask for."""

    text: str
    system: str | None = None
    max_tokens: int = 1
    sampling: dict[str, Any] = field(default_factory=dict)  # temperature, top_p, top_k, stop: under Ollama's names


class Message(msgspec.Struct):
    content: str = ""


class Record(msgspec.Struct):
    """One line of the engine's stream. Counts and durations (nanoseconds) come with the last, and are absent when 0.

    Where the engine reports no cached tokens, `prompt_eval_count` includes them and `prompt_eval_duration` does not.
    """

    message: Message | None = None
    done: bool = False
    done_reason: str = ""
    error: str | None = None
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_cached_count: int | None = None
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0

    @property
    def text(self) -> str:
        return self.message.content if self.message else ""

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed by the engine's own clock; None where it made no token."""
        return self.eval_count / self.eval_duration * 1e9 if self.eval_duration and self.eval_count else None


class LoadedModel(msgspec.Struct):
    """One row of /api/ps. size: bytes of memory, weights and KV cache, by the engine's own reckoning."""

    name: str = ""
    model: str = ""
    digest: str = ""
    size: int = 0
    context_length: int | None = None


class LoadedModels(msgspec.Struct):
    models: list[LoadedModel] = []


class ModelDetails(msgspec.Struct):
    family: str | None = None
    parameter_size: str | None = None
    quantization_level: str | None = None
    context_length: int | None = None


class StoredModel(msgspec.Struct):
    """One row of /api/tags. size: bytes of all its files; nearly all of them are the weights."""

    name: str = ""
    digest: str = ""
    size: int = 0
    details: ModelDetails = msgspec.field(default_factory=ModelDetails)


class StoredModels(msgspec.Struct):
    models: list[StoredModel] = []


class EngineVersion(msgspec.Struct):
    version: str = ""


class _ErrorBody(msgspec.Struct):
    error: Any = ""


decode_record = msgspec.json.Decoder(Record).decode
encode = msgspec.json.Encoder().encode


def chat_request(model: str, prompt: Prompt, load: LoadOptions, keep_alive: str | int) -> bytes:
    """The body of POST /api/chat.

    `truncate` and `shift` are off: a prompt that does not fit is refused and not cut, and an answer that fills the
    context ends with `length` and does not lose its beginning.
    """
    messages = [{"role": "user", "content": prompt.text}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    return encode(
        {
            "model": model,
            "messages": messages,
            "stream": True,
            "truncate": False,
            "shift": False,
            "keep_alive": keep_alive,
            "options": {
                "num_ctx": load.num_ctx,
                "num_thread": load.num_thread,
                "num_batch": load.num_batch,
                "num_predict": prompt.max_tokens,
                **prompt.sampling,
            },
        }
    )


def is_same_model(name: str, other: str) -> bool:
    """Whether two names mean one model: Ollama leaves its registry, `library` and `latest` out, and ignores case."""
    return _full_name(name) == _full_name(other)


def _full_name(name: str) -> str:
    name = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def unreachable(port: int, error: Exception) -> EngineUnreachable:
    return EngineUnreachable(
        f"The engine does not answer on {LOOPBACK}:{port} ({type(error).__name__}); "
        "is Ollama running? (systemctl status ollama)",
        retry_after_s=RETRY_S,
    )


def error_of(status: int, body: bytes, model: str, num_ctx: int) -> ApplianceError:
    """What an error response of the engine means to our client.

    1. 404: the model is not there. 2. 503: its queue is full. 3. 400 with the two numbers of llama-server, or Ollama's
    sentence about the context: the prompt does not fit. 4. Everything else: the engine failed; quote its words.
    """
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.MsgspecError:
        error = body.decode(errors="replace")
    if status == 404:
        return ModelMissing(
            f"The engine does not have {model}: {quote(str(error))}. `ollama pull {model}` on the node brings it.",
            retry_after_s=60,
        )
    if status == 503:
        return EngineBusy(f"The engine takes no more requests: {quote(str(error))}", retry_after_s=RETRY_S)
    if status == 400 and (too_long := _too_long(error, num_ctx)):
        return too_long
    return EngineFailed(f"The engine answered {status}: {quote(str(error))}", retry_after_s=RETRY_S)


def _too_long(error: Any, num_ctx: int) -> PromptTooLong | None:
    """llama-server's exceed_context_size_error, which Ollama passes on as an object or as JSON in a string."""
    if isinstance(error, str) and error.startswith("{"):
        try:
            error = msgspec.json.decode(error.encode())
        except msgspec.MsgspecError:
            return None
    if isinstance(error, dict):
        error = error.get("error", error)
    if isinstance(error, dict) and error.get("type") == "exceed_context_size_error":
        prompt_tokens, num_ctx = error.get("n_prompt_tokens"), error.get("n_ctx", num_ctx)
        return PromptTooLong(
            f"prompt: {prompt_tokens} tokens with the system prompt and the chat template, but N_CTX is "
            f"{num_ctx}, of which at least one is the answer's. Shorten the prompt.",
            field="prompt",
            prompt_tokens=prompt_tokens,
            n_ctx=num_ctx,
        )
    if "context" in str(error) and ("longer than" in str(error) or "exceed" in str(error)):
        return PromptTooLong(
            f"prompt: longer than N_CTX of {num_ctx} tokens. Shorten the prompt.",
            field="prompt",
            n_ctx=num_ctx,
        )
    return None


def quote(words: str) -> str:
    """The engine's own words on one line, not the whole of a book."""
    words = " ".join(words.split())
    return words if len(words) <= QUOTED_CHARS else words[:QUOTED_CHARS] + "…"
