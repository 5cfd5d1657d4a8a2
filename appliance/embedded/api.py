"""The routes: Ollama's HTTP API, as far as the appliance, the bench and the official client use it.

Left out, against Ollama: embeddings, model management other than pull of what is here, the OpenAI routes, logprobs,
CORS headers, and Go templates in a request. The guard that ends Ollama's stream when a model repeats one token is
left out too. `shift`, `truncate`, `context` and `format` work as they do there.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from appliance.embedded.bodies import Ask, Message, parse_chat, parse_generate, parse_named
from appliance.embedded.errors import EngineError
from appliance.embedded.gguf import Model, full_name
from appliance.embedded.llama import Completed, Llama
from appliance.embedded.options import LoadOptions, RunOptions, parse_options
from appliance.embedded.prompts import (
    CHATML_IN_GO,
    CHATML_STOPS,
    chatml,
    is_chatml,
    newest_that_fit,
    shortened,
)
from appliance.embedded.runner import Runner, Wanted
from appliance.embedded.wire import Exchange

VERSION = "0.0.0-embedded"  # never a version of Ollama: this is not Ollama

_CAPABILITIES = ["completion"]
_NAME = re.compile(r"[\w./:-]+", re.ASCII)
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


def is_own_host(host: str) -> bool:
    """Whether a Host header names this machine, so that no web page reaches a loopback service through its DNS."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or "]:" in host else host
    name = name.strip("[]").lower()
    try:
        address = ip_address(name)
    except ValueError:
        return name in ("", "localhost", socket.gethostname().lower()) or name.endswith(
            (".localhost", ".local", ".internal")
        )
    return address.is_loopback or address.is_private or address.is_unspecified


def is_own_origin(origin: str, host: str) -> bool:
    """Whether a page of this origin may ask: none, this service's own, a local one, or a desktop program's."""
    scheme, _, rest = origin.partition("://")
    if not origin or rest == host:
        return True
    if scheme in ("http", "https"):
        return urlsplit(origin).hostname in ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 (compared only)
    return scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file")


def schema_of(format: Any) -> dict[str, Any] | None:
    """The JSON schema that a request's `format` asks for. Raises: EngineError 500 with Ollama's text."""
    if format is None or isinstance(format, dict):
        return format
    if format == "json":
        return {"type": "object"}
    shown = json.dumps(json.dumps(format))
    raise EngineError(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def _non_zero(values: dict[str, Any]) -> dict[str, Any]:
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
        return {"done": True, "done_reason": completed.done_reason} | _non_zero(metrics)


class Api:
    """Answers the requests.

    models: what is served. defaults: load options where a request is silent. on_loopback: only this machine can
    reach us, so a foreign Host header is a web page's trick.
    """

    def __init__(
        self, models: Sequence[Model], runner: Runner[Llama], defaults: LoadOptions, on_loopback: bool
    ) -> None:
        self._models = {full_name(model.name): model for model in models}
        self._runner = runner
        self._defaults = defaults
        self._on_loopback = on_loopback
        self._routes: dict[str, dict[str, Callable[[Exchange], None]]] = {
            "/": {"GET": self.root, "HEAD": self.root},
            "/api/version": {"GET": self.version, "HEAD": self.version},
            "/api/tags": {"GET": self.tags, "HEAD": self.tags},
            "/api/ps": {"GET": self.ps},
            "/api/show": {"POST": self.show},
            "/api/pull": {"POST": self.pull},
            "/api/generate": {"POST": self.generate},
            "/api/chat": {"POST": self.chat},
        }

    def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Raises: EngineError, ClientGone."""
        host = exchange.headers.get("Host", "")
        if self._on_loopback and not is_own_host(host):
            exchange.refuse(403)
            return
        if not is_own_origin(exchange.headers.get("Origin", ""), host):
            exchange.refuse(403)
            return
        handlers = self._routes.get(exchange.path.split("?", 1)[0])
        if handlers is None:
            exchange.refuse(404, "404 page not found")
            return
        handler = handlers.get(exchange.command)
        if handler is None:
            exchange.refuse(405, "405 method not allowed", {"Allow": ", ".join(handlers)})
            return
        handler(exchange)

    def root(self, exchange: Exchange) -> None:
        exchange.text("Ollama is running")

    def version(self, exchange: Exchange) -> None:
        exchange.json({"version": VERSION})

    def tags(self, exchange: Exchange) -> None:
        exchange.json({"models": [self._listed(model) for model in self._models.values()]})

    def _listed(self, model: Model) -> dict[str, Any]:
        details = model.details | {
            "context_length": model.fact("context_length"),
            "embedding_length": model.fact("embedding_length"),
        }
        return {
            "name": model.name,
            "model": model.name,
            "modified_at": model.modified_at,
            "size": model.size,
            "digest": model.digest,
            "details": {name: value for name, value in details.items() if value is not None},
            "capabilities": _CAPABILITIES,
        }

    def ps(self, exchange: Exchange) -> None:
        """What is loaded. `size` is the file's; the cache of each slot comes on top."""
        loaded = self._runner.loaded()
        if loaded is None:
            exchange.json({"models": []})
            return
        wanted, left_s = loaded
        model = wanted.model
        entry = {
            "name": model.name,
            "model": model.name,
            "size": model.size,
            "digest": model.digest,
            "details": model.details,
            "expires_at": (datetime.now(UTC) + timedelta(seconds=left_s)).isoformat().replace("+00:00", "Z"),
            "size_vram": 0,
            "context_length": wanted.load.num_ctx,
        }
        exchange.json({"models": [entry]})

    def show(self, exchange: Exchange) -> None:
        name, _ = parse_named(exchange.body, "ShowRequest")
        if not name:
            raise EngineError(400, "model is required")
        model = self._find(name, full_name(name))
        hidden = ("general.name", "tokenizer.chat_template")
        plain = is_chatml(model.chat_template)
        shown = {
            "modelfile": f"# Served by the embedded engine, not by Ollama\nFROM {model.path}\n",
            "parameters": "\n".join(f'stop                           "{stop}"' for stop in _stops(model)),
            "template": CHATML_IN_GO if plain else model.chat_template,
        }
        exchange.json(
            _non_zero(shown)
            | {
                "details": model.details,
                "model_info": {name: value for name, value in model.header.items() if name not in hidden},
                "capabilities": _CAPABILITIES,
                "modified_at": model.modified_at,
            }
        )

    def pull(self, exchange: Exchange) -> None:
        """Pull of a model that is here: what Ollama answers when there is nothing to download."""
        name, streams = parse_named(exchange.body, "PullRequest")
        exchange.streams = streams
        if not name:
            raise EngineError(400, "invalid model name")
        model = self._models.get(full_name(name))
        write = exchange.record if streams else (lambda _: None)
        write({"status": "pulling manifest"})
        if model is None:
            raise EngineError(500, "pull model manifest: file does not exist")
        blob = {"digest": f"sha256:{model.digest}", "total": model.size, "completed": model.size}
        write({"status": f"pulling {model.digest[:12]}", **blob})
        for status in ("verifying sha256 digest", "writing manifest"):
            write({"status": status})
        if streams:
            exchange.record({"status": "success"})
            return
        exchange.json({"status": "success"}, content_type="application/json")

    def generate(self, exchange: Exchange) -> None:
        started_ns = time.monotonic_ns()
        ask = parse_generate(exchange.body)
        model = self._find(ask.model)
        self._run(Generation(exchange, ask, False, started_ns), model)

    def chat(self, exchange: Exchange) -> None:
        started_ns = time.monotonic_ns()
        ask = parse_chat(exchange.body)
        if not ask.model:
            raise EngineError(400, "model is required")
        model = self._find(ask.model)
        self._run(Generation(exchange, ask, True, started_ns), model)

    def _find(self, name: str, shown_as: str | None = None) -> Model:
        """Raises: EngineError 400 for what cannot be a name, 404 for what is not here."""
        if name and not _NAME.fullmatch(name):
            raise EngineError(400, "invalid model name")
        model = self._models.get(full_name(name))
        if model is None:
            raise EngineError(404, f"model '{shown_as or name}' not found")
        return model

    def _run(self, generation: Generation, model: Model) -> None:
        """Generate, load or unload.

        1. Nothing to say and keep_alive 0: unload as soon as nobody uses it; answered at once.
        2. What this model cannot do: refuse.
        3. Nothing to say: load, and answer when loaded.
        4. Otherwise take a slot and generate.
        """
        ask, exchange = generation.ask, generation.exchange
        if ask.unloads:
            self._runner.unload(model)
            exchange.json(generation.record("", done=True, done_reason="unload"))
            return
        _refuse_what_is_missing(ask, model)
        defaults = replace(self._defaults, context_shift=ask.shift)
        load, run = parse_options(ask.options, defaults, model.trained_ctx, _stops(model))
        wanted = Wanted(model, load)
        if ask.is_empty and self._runner.keep(wanted, ask.keep_alive_s):
            exchange.json(generation.record("", done=True, done_reason="load"))
            return
        with self._runner.slot(wanted, ask.keep_alive_s, exchange.peer) as slot:
            exchange.streams = ask.stream and not ask.is_empty
            ready_ns = max(generation.started_ns, int(slot.ready_s * 1e9))
            if ask.is_empty:
                last = generation.record("", done=True, done_reason="load")
            else:
                last = self._generate(generation, slot.backend, wanted, run, ready_ns)
        # Only now, so that who reads the end of an answer finds its slot free.
        write = exchange.record if exchange.streams else exchange.json
        write(last)

    def _generate(
        self, generation: Generation, llama: Llama, wanted: Wanted, run: RunOptions, ready_ns: int
    ) -> dict[str, Any]:
        """Generate, writing all records but the last if it streams. Returns: the last record."""
        ask, exchange = generation.ask, generation.exchange
        text = _prompt(ask, wanted, llama)
        pieces: list[str] = []

        def on_text(piece: str) -> None:
            pieces.append(piece)
            if ask.stream:
                exchange.record(generation.record(piece))

        completed = llama.complete(
            _fitting(text, ask, wanted, run, llama),
            run,
            run.token_limit(wanted.load.num_ctx),
            schema_of(ask.format),
            on_text,
            exchange.peer.is_gone,
        )
        answer = "".join(pieces) + completed.text
        context = [] if generation.is_chat or ask.raw else llama.tokenize(text + answer)
        ending = generation.ended(completed, ready_ns, context)
        return generation.record(completed.text if ask.stream else answer, **ending)


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


def _stops(model: Model) -> Sequence[str]:
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
