"""One request to generate, from its options to its last record, in the shape of /api/generate or /api/chat."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from appliance.embedded.bodies import Ask, Message
from appliance.embedded.errors import EngineError
from appliance.embedded.gguf import Model
from appliance.embedded.llama import Completed, Llama
from appliance.embedded.options import LoadOptions, RunOptions, parse_options
from appliance.embedded.prompts import CHATML_STOPS, chatml, is_chatml, newest_that_fit, shortened
from appliance.embedded.runner import Runner, Slot, Wanted
from appliance.embedded.wire import Exchange

_NO_IMAGES = {
    "error": {
        "code": 400,
        "message": "Multimodal data provided, but model does not support multimodal requests.",
        "type": "invalid_request_error",
    }
}


def go_time(nanoseconds: int) -> str:
    """A time as Go writes it: UTC, RFC 3339, as many digits after the second as are not zero."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + digits + "Z"


def schema_of(format: Any) -> dict[str, Any] | None:
    """The JSON schema that a request's `format` asks for. Raises: EngineError 500 with Ollama's text."""
    if format is None or isinstance(format, dict):
        return format
    if format == "json":
        return {"type": "object"}
    shown = json.dumps(json.dumps(format))
    raise EngineError(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def non_zero(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is zero or empty: Go's `omitempty`."""
    return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class Generation:
    """One generation on its way: writes its records as the route's shape wants them."""

    exchange: Exchange
    ask: Ask
    is_chat: bool
    started_ns: int

    def record(self, text: str, **ending: Any) -> dict[str, Any]:
        """A record with this piece of text; the last one if an ending is given."""
        piece = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"response": text}
        return {
            "model": self.ask.model,
            "created_at": go_time(time.time_ns()),
            **piece,
            "done": False,
            **ending,
        }

    def ended(self, completed: Completed, ready_ns: int, context: list[int]) -> dict[str, Any]:
        """The fields of the last record."""
        metrics = {
            "context": context,
            "total_duration": time.monotonic_ns() - self.started_ns,
            "load_duration": ready_ns - self.started_ns,
            "prompt_eval_count": completed.prompt_eval_count,
            "prompt_eval_duration": completed.prompt_eval_ns,
            "eval_count": completed.eval_count,
            "eval_duration": completed.eval_ns,
        }
        return {"done": True, "done_reason": completed.done_reason} | non_zero(metrics)

    def run(self, model: Model, runner: Runner[Llama], defaults: LoadOptions) -> None:
        """Generate, load or unload.

        1. Nothing to say and keep_alive 0: unload as soon as nobody uses it; answered at once.
        2. What this model cannot do: refuse.
        3. Nothing to say: load, and answer when loaded.
        4. Otherwise take a slot and generate.

        Raises: EngineError, ClientGone.
        """
        ask, exchange = self.ask, self.exchange
        if ask.unloads:
            runner.unload(model)
            exchange.json(self.record("", done=True, done_reason="unload"))
            return
        _refuse_what_is_missing(ask, model)
        defaults = replace(defaults, context_shift=ask.shift)
        load, run = parse_options(ask.options, defaults, model.trained_ctx, stops_of(model))
        wanted = Wanted(model, load)
        if ask.is_empty and runner.keep(wanted, ask.keep_alive_s):
            exchange.json(self.record("", done=True, done_reason="load"))
            return
        with runner.slot(wanted, ask.keep_alive_s, exchange.peer) as slot:
            exchange.streams = ask.stream and not ask.is_empty
            last = self._last_record(slot, wanted, run)
        # Only now, so that who reads the end of an answer finds its slot free.
        write = exchange.record if exchange.streams else exchange.json
        write(last)

    def _last_record(self, slot: Slot[Llama], wanted: Wanted, run: RunOptions) -> dict[str, Any]:
        """Generate, and write all records but the last if it streams. Returns: the last record."""
        ask, llama = self.ask, slot.backend
        if ask.is_empty:
            return self.record("", done=True, done_reason="load")
        text = _prompt(ask, wanted, llama)
        pieces: list[str] = []

        def on_text(piece: str) -> None:
            pieces.append(piece)
            if ask.stream:
                self.exchange.record(self.record(piece))

        completed = llama.complete(
            _fitting(text, ask, wanted, run, llama),
            run,
            run.token_limit(wanted.load.num_ctx),
            schema_of(ask.format),
            on_text,
            self.exchange.peer.is_gone,
        )
        answer = "".join(pieces) + completed.text
        context = [] if self.is_chat or ask.raw else llama.tokenize(text + answer)
        ready_ns = max(self.started_ns, int(slot.ready_s * 1e9))
        ending = self.ended(completed, ready_ns, context)
        return self.record(completed.text if ask.stream else answer, **ending)


def _refuse_what_is_missing(ask: Ask, model: Model) -> None:
    """Raises: EngineError 400 for what this engine or its model cannot do."""
    if ask.raw and (ask.template or ask.system or ask.context):
        raise EngineError(400, "raw mode does not support template, system, or context")
    if ask.thinks:
        raise EngineError(400, f'"{ask.model}" does not support thinking')
    qualified = f"registry.ollama.ai/library/{model.name}"
    if ask.suffix:
        raise EngineError(400, f"{qualified} does not support insert")
    if ask.has_tools:
        raise EngineError(400, f"{qualified} does not support tools")
    if ask.template:
        raise EngineError(400, "the embedded engine does not support templates in a request")


def stops_of(model: Model) -> Sequence[str]:
    """The stop strings that the model comes with."""
    return CHATML_STOPS if is_chatml(model.chat_template) else ()


def _prompt(ask: Ask, wanted: Wanted, llama: Llama) -> str:
    """The text that the model gets: raw, or made by its chat template of the messages that fit."""
    if ask.has_images:
        raise EngineError(400, json.dumps(_NO_IMAGES, separators=(",", ":")))
    if ask.raw:
        return ask.prompt
    messages = list(ask.messages)
    if ask.prompt:
        messages = [Message("system", ask.system)] if ask.system else []
        messages.append(Message("user", ask.prompt))
    render = chatml if is_chatml(wanted.model.chat_template) else llama.render
    if ask.truncate and len(messages) > 1:
        messages = newest_that_fit(messages, wanted.load.num_ctx, lambda kept: len(llama.tokenize(render(kept))))
    before = llama.detokenize(ask.context) if ask.context else ""
    return before + render(messages)


def _fitting(text: str, ask: Ask, wanted: Wanted, run: RunOptions, llama: Llama) -> str | list[int]:
    """The prompt, or its tokens cut to fit when the request allows cutting."""
    may_be_too_long = len(text.encode()) >= wanted.load.num_ctx  # a token is at least a byte
    if not ask.truncate or not may_be_too_long:
        return text
    cut = shortened(llama.tokenize(text), wanted.load, run.num_keep, wanted.model.adds_bos)
    return text if cut is None else cut
