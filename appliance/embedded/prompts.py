"""The ChatML template, and what is cut from a prompt that does not fit the context. Pure.

Ollama cuts silently (server/routes.go, llm/llama_server.go): a chat loses its oldest messages first; a prompt that is
still too long keeps its first num_keep tokens and its end, and about half the context is left free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from appliance.embedded.bodies import Message
from appliance.embedded.errors import EngineError
from appliance.embedded.options import LoadOptions

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust"
    " the context length in settings, or use a model with a longer context length"
)

# What Ollama puts in place of a GGUF's own template when that is plain ChatML: without its default system prompt.
CHATML_IN_GO = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)
CHATML_STOPS = ("<|im_start|>", "<|im_end|>")
_CHATML_TURN = "'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"


def is_chatml(template: str) -> bool:
    """Whether a GGUF's chat template does no more than ChatML (for which Ollama then uses its own)."""
    return _CHATML_TURN in template.replace("\\n", "\n") and "tools" not in template


def chatml(messages: Sequence[Message]) -> str:
    """The messages as ChatML, ending where the assistant is to speak."""
    turns = (f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def newest_that_fit(
    messages: Sequence[Message], num_ctx: int, count_tokens: Callable[[Sequence[Message]], int]
) -> list[Message]:
    """The system messages and as many of the newest others as fit; the last message always stays."""
    for start in range(len(messages)):
        system = [message for message in messages[:start] if message.role == "system"]
        kept = [*system, *messages[start:]]
        if start == len(messages) - 1 or count_tokens(kept) <= num_ctx:
            return kept
    return list(messages)


def shortened(tokens: Sequence[int], load: LoadOptions, num_keep: int, adds_bos: bool) -> list[int] | None:
    """The tokens to send instead of a prompt that is too long, or None if it fits.

    1. It fits num_ctx - 1 tokens: None.
    2. The model is loaded without context shift: refuse, as cutting was not wanted.
    3. Otherwise the first num_keep tokens and the end, so that half of what is not kept is free.

    Raises: EngineError 400 (case 2).
    """
    most = load.num_ctx - 1
    if len(tokens) <= most:
        return None
    if not load.context_shift:
        raise EngineError(400, TOO_LONG)
    keep = min((len(tokens) if num_keep < 0 else num_keep) + adds_bos, most)
    length = load.num_ctx - max((load.num_ctx - keep) // 2, 1)
    return [*tokens[:keep], *tokens[len(tokens) - (length - keep) :]]
