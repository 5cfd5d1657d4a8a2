"""Ollama, or what speaks its API, on this machine's loopback: asks for generations, and for what it holds.

Nothing is pooled, so nothing queues behind our back: a connection a generation, closed to cancel it.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any, TypeVar

import gevent
import msgspec

from appliance.errors import ApplianceError, EngineFailed, NotReady
from appliance.protocol import (
    LOOPBACK,
    RETRY_S,
    EngineVersion,
    LoadedModel,
    LoadedModels,
    LoadOptions,
    Prompt,
    StoredModel,
    StoredModels,
    chat_request,
    encode,
    error_of,
    is_same_model,
    quote,
    unreachable,
)
from appliance.recordstream import Patience, RecordStream

T = TypeVar("T")

ANSWER_LIMIT_BYTES = 1024 * 1024
PULL_SILENCE_S = 900.0  # "verifying sha256 digest" says nothing while it reads gigabytes from an SD card
ANSWER_TIMEOUT_S = 5.0  # what it holds, it says at once, but on a busy Pi not in milliseconds


class Engine:
    """Ollama, or what speaks its API, on this machine's loopback.

    model: its name with tag.
    options: the load-time options of every request.
    keep_alive: as Ollama takes it ("30m", or seconds as a number; -1 for ever).
    """

    def __init__(
        self,
        port: int,
        model: str,
        options: LoadOptions,
        keep_alive: str | int,
        patience: Patience | None = None,
    ) -> None:
        self.port = port
        self.model = model
        self.options = options
        self.keep_alive = keep_alive
        self.patience = patience or Patience()

    def generate(self, prompt: Prompt, options: LoadOptions | None = None) -> RecordStream:
        """Ask for one generation, with the node's own load-time options unless others are given (a benchmark).

        Returns: the open stream; nothing has been read from it yet.
        Raises: EngineUnreachable, NotReady.
        """
        load = options or self.options

        def meaning(status: int, body: bytes) -> ApplianceError:
            return error_of(status, body, self.model, load.num_ctx)

        request = chat_request(self.model, prompt, load, self.keep_alive)
        return RecordStream(self._connect(), self.port, request, self.patience, meaning)

    def loaded_models(self) -> list[LoadedModel]:
        """What /api/ps says is in memory now.

        Raises: EngineUnreachable, EngineFailed.
        """
        return self._told("/api/ps", LoadedModels).models

    def own_loaded_models(self) -> list[LoadedModel]:
        """The rows of `loaded_models` that are this node's model. Raises: as it does."""
        return [row for row in self.loaded_models() if is_same_model(row.name or row.model, self.model)]

    def version(self) -> str:
        """Raises: EngineUnreachable, EngineFailed."""
        return self._told("/api/version", EngineVersion).version

    def stored_model(self) -> StoredModel | None:
        """What /api/tags says of this node's model; None where it is not in the store.

        Raises: EngineUnreachable, EngineFailed.
        """
        rows = self._told("/api/tags", StoredModels).models
        return next((row for row in rows if is_same_model(row.name, self.model)), None)

    def has_model(self) -> bool:
        """Whether the model is in the engine's store.

        Raises: EngineUnreachable, EngineFailed.
        """
        status, _ = self._call("POST", "/api/show", {"model": self.model})
        if status not in (200, 404):
            raise EngineFailed(f"The engine answered {status} when asked about {self.model}.")
        return status == 200

    def pull(self) -> Iterator[tuple[str, float | None]]:
        """Pull the model: pairs of what the engine is doing and the share done (0 to 1), where it is known.

        The official client serves here, imported only now: it and pydantic take 14 MB that a node with its model in
        place need not spend.

        Raises: EngineUnreachable, EngineFailed.
        """
        import httpx
        import ollama

        timeout = httpx.Timeout(PULL_SILENCE_S, connect=self.patience.connect_s)
        client = ollama.Client(host=f"http://{LOOPBACK}:{self.port}", timeout=timeout, trust_env=False)
        try:
            for progress in client.pull(self.model, stream=True):
                share = (progress.completed or 0) / progress.total if progress.total else None
                yield progress.status or "", share
        except ollama.ResponseError as error:
            raise EngineFailed(f"The engine could not pull {self.model}: {quote(error.error)}") from error
        except (httpx.HTTPError, ConnectionError) as error:
            raise unreachable(self.port, error) from error
        except ValueError as error:  # the official client's, for a line that is no JSON or not one of a pull's
            raise EngineFailed(f"The engine's answer to a pull of {self.model} is not Ollama's: {error}") from error

    def _connect(self) -> socket.socket:
        # Not create_connection(): it would have gevent's resolver thread look up an address that is a number.
        try:
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:  # no file descriptor is left
            raise NotReady(
                f"This node is out of resources: {error.strerror}; try again.", retry_after_s=RETRY_S
            ) from error
        connection.settimeout(self.patience.connect_s)
        try:
            connection.connect((LOOPBACK, self.port))
        except OSError as error:
            connection.close()
            raise unreachable(self.port, error) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _told(self, path: str, kind: type[T]) -> T:
        """What the engine answers to a GET. Raises: EngineUnreachable, EngineFailed."""
        status, body = self._call("GET", path)
        if status != 200:
            raise EngineFailed(f"The engine answered {status} when asked for {path}.")
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise EngineFailed(f"What {path} gives is not what Ollama sends: {error}") from error

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=ANSWER_TIMEOUT_S)
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, encode(body) if body else None, headers)
            with gevent.Timeout(ANSWER_TIMEOUT_S, TimeoutError()):  # all of it: one that drips bytes holds nobody
                response = connection.getresponse()
                return response.status, response.read(ANSWER_LIMIT_BYTES)
        except (OSError, HTTPException) as error:
            raise unreachable(self.port, error) from error
        finally:
            connection.close()
