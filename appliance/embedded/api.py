"""The routes: Ollama's HTTP API, as far as the appliance, the bench and the official client use it.

Left out, against Ollama: embeddings, model management other than pull and delete, the OpenAI routes, logprobs,
CORS headers, Go templates in a request, and what a stored model's own system and params layers say. The guard that ends
Ollama's stream when a model repeats one token is left out too. `shift`, `truncate`, `context` and `format` work as they
do there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.embedded.bodies import Ask, parse_chat, parse_generate, parse_named
from appliance.embedded.errors import EngineError
from appliance.embedded.generation import Generation, non_zero, stops_of
from appliance.embedded.gguf import Model, full_name
from appliance.embedded.hosts import is_own_host, is_own_origin
from appliance.embedded.llama import Llama
from appliance.embedded.models import Models
from appliance.embedded.options import LoadOptions
from appliance.embedded.prompts import CHATML_IN_GO, is_chatml
from appliance.embedded.runner import Runner
from appliance.embedded.wire import Exchange

VERSION = "0.0.0-embedded"  # never a version of Ollama: this is not Ollama

_CAPABILITIES = ["completion"]
_NAME = re.compile(r"[\w./:-]+", re.ASCII)


class Api:
    """Answers the requests.

    models: what is served. defaults: load options where a request is silent. on_loopback: only this machine can
    reach us, so a foreign Host header is a web page's trick. version: what /api/version answers.
    """

    def __init__(
        self,
        models: Models,
        runner: Runner[Llama],
        defaults: LoadOptions,
        on_loopback: bool,
        version: str = VERSION,
    ) -> None:
        self._models = models
        self._version = version
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
            "/api/delete": {"DELETE": self.delete},
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
        exchange.json({"version": self._version})

    def tags(self, exchange: Exchange) -> None:
        exchange.json({"models": [self._listed(model) for model in self._models.all()]})

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
        } | ({"capabilities": _CAPABILITIES} if model.header else {})

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
        model = self._find(name, "show", full_name(name))
        hidden = ("general.name", "tokenizer.chat_template")
        plain = is_chatml(model.chat_template)
        shown = {
            "modelfile": f"# Served by the embedded engine, not by Ollama\nFROM {model.path}\n",
            "parameters": "\n".join(f'stop                           "{stop}"' for stop in stops_of(model)),
            "template": CHATML_IN_GO if plain else model.chat_template,
        }
        exchange.json(
            non_zero(shown)
            | {
                "details": model.details,
                "model_info": {name: value for name, value in model.header.items() if name not in hidden},
                "capabilities": _CAPABILITIES,
                "modified_at": model.modified_at,
            }
        )

    def pull(self, exchange: Exchange) -> None:
        name, streams = parse_named(exchange.body, "PullRequest")
        exchange.streams = streams
        if not name or not _NAME.fullmatch(name):
            raise EngineError(400, "invalid model name")
        record: dict[str, Any] = {}
        with closing(self._models.pull(name, exchange.peer.is_gone)) as records:
            for record in records:
                if streams:
                    exchange.record(record)
        if not streams:
            exchange.json(record, content_type="application/json")

    def delete(self, exchange: Exchange) -> None:
        name, _ = parse_named(exchange.body, "DeleteRequest")
        if not name:
            raise EngineError(400, "model is required")
        if not _NAME.fullmatch(name):
            raise EngineError(400, f'name "{name}" is invalid')
        if not self._models.delete(name):
            raise EngineError(404, f"model '{name}' not found")
        exchange.empty()

    def generate(self, exchange: Exchange) -> None:
        started_ns = time.monotonic_ns()
        self._run(exchange, parse_generate(exchange.body), False, started_ns)

    def chat(self, exchange: Exchange) -> None:
        started_ns = time.monotonic_ns()
        ask = parse_chat(exchange.body)
        if not ask.model:
            raise EngineError(400, "model is required")
        self._run(exchange, ask, True, started_ns)

    def _run(self, exchange: Exchange, ask: Ask, is_chat: bool, started_ns: int) -> None:
        model = self._find(ask.model, "chat" if is_chat else "generate")
        Generation(exchange, ask, is_chat, started_ns).run(model, self._runner, self._defaults)

    def _find(self, name: str, purpose: str, shown_as: str | None = None) -> Model:
        """Raises: EngineError 400 for what cannot be a name, 404 for what is not here."""
        if name and not _NAME.fullmatch(name):
            raise EngineError(400, "invalid model name")
        model = self._models.find(name, purpose) if name else None
        if model is None:
            raise EngineError(404, f"model '{shown_as or name}' not found")
        return model
