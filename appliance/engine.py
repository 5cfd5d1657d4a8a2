"""The only file that knows Ollama's API: asks for a generation, yields its records, turns its failures into our errors.

The token stream is read from the socket itself and not through the official client, whose pydantic object and httpx
layers a token cost more than the rest of the service together (docs/dependencies.md has the figures). Nothing is
pooled, so nothing queues behind our back: a connection a generation, closed to cancel.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from types import TracebackType
from typing import Any

import gevent
import msgspec
from gevent.hub import Waiter

from appliance.errors import (
    ApplianceError,
    EngineBusy,
    EngineFailed,
    EngineStalled,
    EngineUnreachable,
    ModelMissing,
    PromptTooLong,
)

LOOPBACK = "127.0.0.1"
RETRY_S = 5
RECEIVE_BYTES = 16 * 1024
HEAD_LIMIT_BYTES = 64 * 1024
LINE_LIMIT_BYTES = 1024 * 1024
LEAST_TIMEOUT_S = 0.001
READABLE = 1  # libev's EV_READ
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
    """One row of /api/ps."""

    name: str = ""
    model: str = ""
    digest: str = ""
    context_length: int | None = None


class _LoadedModels(msgspec.Struct):
    models: list[LoadedModel] = []


class _ErrorBody(msgspec.Struct):
    error: Any = ""


_decode_record = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.Encoder().encode


class Engine:
    """Ollama, or what speaks its API, on this machine's loopback.

    model: its name with tag.
    options: the load-time options of every request.
    keep_alive: as Ollama takes it ("30m", or seconds as a number; -1 for ever).
    connect_timeout_s, first_token_timeout_s, stall_timeout_s: to connect; from the request to the first record (the
    load and the whole prefill come before it, and Ollama sends no header earlier); between two records.
    """

    def __init__(
        self,
        port: int,
        model: str,
        options: LoadOptions,
        keep_alive: str | int,
        *,
        connect_timeout_s: float = 2.0,
        first_token_timeout_s: float = 180.0,
        stall_timeout_s: float = 60.0,
    ) -> None:
        self.address = (LOOPBACK, port)
        self.model = model
        self.options = options
        self.keep_alive = keep_alive
        self.connect_timeout_s = connect_timeout_s
        self.first_token_timeout_s = first_token_timeout_s
        self.stall_timeout_s = stall_timeout_s

    def generate(self, prompt: Prompt, options: LoadOptions | None = None) -> RecordStream:
        """Ask for one generation, with the node's own load-time options unless others are given (a benchmark).

        `truncate` and `shift` are off: a prompt that does not fit is refused and not cut, and an answer that fills
        the context ends with `length` and does not lose its beginning.

        Returns: the open stream; nothing has been read from it yet.
        Raises: EngineUnreachable.
        """
        messages = [{"role": "user", "content": prompt.text}]
        if prompt.system:
            messages.insert(0, {"role": "system", "content": prompt.system})
        load = options or self.options
        body = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "truncate": False,
            "shift": False,
            "keep_alive": self.keep_alive,
            "options": {
                "num_ctx": load.num_ctx,
                "num_thread": load.num_thread,
                "num_batch": load.num_batch,
                "num_predict": prompt.max_tokens,
                **prompt.sampling,
            },
        }
        return RecordStream(self, self._connect(), _encode(body))

    def loaded_models(self) -> list[LoadedModel]:
        """What /api/ps says is in memory now.

        Raises: EngineUnreachable, EngineFailed.
        """
        status, body = self._call("GET", "/api/ps")
        if status != 200:
            raise EngineFailed(f"The engine answered {status} when asked for its loaded models.")
        try:
            return msgspec.json.decode(body, type=_LoadedModels).models
        except msgspec.MsgspecError as error:
            raise EngineFailed(f"What /api/ps gives is not what Ollama sends: {error}") from error

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

        The official client serves here, imported only now: it and pydantic take 17 MB that a node with its model in
        place need not spend.

        Raises: EngineUnreachable, EngineFailed.
        """
        import httpx
        import ollama

        timeout = httpx.Timeout(self.stall_timeout_s, connect=self.connect_timeout_s)
        client = ollama.Client(host=f"http://{LOOPBACK}:{self.address[1]}", timeout=timeout, trust_env=False)
        try:
            for progress in client.pull(self.model, stream=True):
                share = (progress.completed or 0) / progress.total if progress.total else None
                yield progress.status or "", share
        except ollama.ResponseError as error:
            raise EngineFailed(f"The engine could not pull {self.model}: {_quote(error.error)}") from error
        except (httpx.HTTPError, ConnectionError) as error:
            raise self.unreachable(error) from error
        except ValueError as error:  # the official client's, for a line that is no JSON or not one of a pull's
            raise EngineFailed(f"The engine's answer to a pull of {self.model} is not Ollama's: {error}") from error

    def unreachable(self, error: Exception) -> EngineUnreachable:
        return EngineUnreachable(
            f"The engine does not answer on {LOOPBACK}:{self.address[1]} ({type(error).__name__}); "
            "is Ollama running? (systemctl status ollama)",
            retry_after_s=RETRY_S,
        )

    def _connect(self) -> socket.socket:
        # Not create_connection(): it would have gevent's resolver thread look up an address that is a number.
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.settimeout(self.connect_timeout_s)
        try:
            connection.connect(self.address)
        except OSError as error:
            connection.close()
            raise self.unreachable(error) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=self.connect_timeout_s)
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, _encode(body) if body else None, headers)
            response = connection.getresponse()
            return response.status, response.read(LINE_LIMIT_BYTES)
        except (OSError, HTTPException) as error:
            raise self.unreachable(error) from error
        finally:
            connection.close()


class RecordStream:
    """The records of one generation, as they arrive. Leaving its `with` block ends it, in the engine too."""

    def __init__(self, engine: Engine, connection: socket.socket, body: bytes) -> None:
        self.is_ended = False
        self._engine = engine
        self._socket = connection
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(connection.fileno(), READABLE)
        self._body = _Body()
        self._is_aborted = False
        self._failure: EngineFailed | None = None  # behind records that have been handed on
        self._lines = b""
        self._progress_at = time.monotonic()
        self._has_begun = False
        head = (
            f"POST /api/chat HTTP/1.1\r\nHost: {LOOPBACK}:{engine.address[1]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            self._socket.sendall(head.encode() + body)
        except OSError as error:
            self.close()
            raise engine.unreachable(error) from error
        self._socket.settimeout(0)

    def __enter__(self) -> RecordStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def receive(self, timeout_s: float) -> list[Record]:
        """The records that have arrived; waits up to `timeout_s` seconds for the first of them.

        Returns: an empty list when the engine stayed silent. The last record has `done`; then `is_ended` is true.
        Raises: EngineStalled, EngineFailed (also for an end without `done`), EngineBusy, ModelMissing, PromptTooLong,
        EngineUnreachable (it closed the connection before its first byte).
        """
        if self._failure is not None:
            raise self._failure
        ends_at = time.monotonic() + timeout_s
        while (left_s := ends_at - time.monotonic()) > 0:
            if self._body.is_complete:
                raise self._ended_early(None)
            if not self._is_readable(min(left_s, self._patience_s())):
                if self._patience_s() <= LEAST_TIMEOUT_S:
                    raise self._stalled()
                continue
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._ended_early(error) from error
            if not data:
                raise self._ended_early(None)
            if records := self._parse(data):
                return records
        return []

    def abort(self) -> None:
        """Tell the engine to stop, now. Does not block: it may be called from the event loop."""
        self._is_aborted = True
        with suppress(OSError):  # the engine was quicker
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> int:
        """End the generation, in the engine too; safe to call again. Returns: how many records nobody waited for."""
        unread = 0 if self.is_ended else self._count_unread()
        self._watcher.close()
        self._socket.close()
        return unread

    def _is_readable(self, timeout_s: float) -> bool:
        """Wait for the engine, leaner than gevent's recv(), which tries in vain first and makes a time-out object."""
        waiter: Waiter[bool] = Waiter(self._hub)
        timer = self._hub.loop.timer(timeout_s)
        self._watcher.start(waiter.switch, True)
        timer.start(waiter.switch, False, update=False)
        try:
            return waiter.get()
        finally:
            self._watcher.stop()
            timer.close()

    def _parse(self, data: bytes) -> list[Record]:
        payload = self._body.feed(data)
        if self._body.status is None:
            return []
        if self._body.status != 200:
            self._read_error(payload)
        *lines, self._lines = (self._lines + payload).split(b"\n")
        if len(self._lines) > LINE_LIMIT_BYTES:
            raise EngineFailed(f"The engine sent a line longer than {LINE_LIMIT_BYTES} bytes.")
        records = self._read_records(lines)
        if records:
            self._has_begun = True
            self._progress_at = time.monotonic()
        return records

    def _read_records(self, lines: list[bytes]) -> list[Record]:
        """What came before a failure is handed on first; the failure itself at the next call."""
        records: list[Record] = []
        for line in filter(None, lines):
            try:
                records.append(self._record(line))
            except EngineFailed as failure:
                if not records:
                    raise
                self._failure = failure
                break
        return records

    def _record(self, line: bytes) -> Record:
        try:
            record = _decode_record(line)
        except msgspec.MsgspecError as error:
            raise EngineFailed(f"The engine sent a line that is not one of Ollama's: {error}") from error
        if record.error is not None:
            raise EngineFailed(f"The engine failed: {_quote(record.error)}", retry_after_s=RETRY_S)
        self.is_ended = self.is_ended or record.done
        return record

    def _read_error(self, payload: bytes) -> None:
        """Read the rest of an error's body, then raise what it means."""
        self._socket.settimeout(self._engine.connect_timeout_s)
        try:
            while not self._body.is_complete and len(payload) < LINE_LIMIT_BYTES:
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    break
                payload += self._body.feed(data)
        except OSError:
            pass  # what has come must do
        assert self._body.status is not None
        raise _error_of(self._engine, self._body.status, payload)

    def _patience_s(self) -> float:
        engine = self._engine
        limit_s = engine.stall_timeout_s if self._has_begun else engine.first_token_timeout_s
        return max(LEAST_TIMEOUT_S, self._progress_at + limit_s - time.monotonic())

    def _stalled(self) -> EngineStalled:
        engine = self._engine
        if self._has_begun:
            return EngineStalled(
                f"The engine sent no token for {engine.stall_timeout_s:g} s (ENGINE_STALL_TIMEOUT_S).",
                retry_after_s=RETRY_S,
            )
        return EngineStalled(
            f"The engine sent nothing for {engine.first_token_timeout_s:g} s (ENGINE_FIRST_TOKEN_TIMEOUT_S); "
            "a shorter prompt needs less prefill.",
            retry_after_s=RETRY_S,
        )

    def _ended_early(self, cause: Exception | None) -> ApplianceError:
        if self._body.status is None and not self._is_aborted:
            return self._engine.unreachable(cause or ConnectionResetError())
        return EngineFailed("The engine ended its stream without saying that it was done.", retry_after_s=RETRY_S)

    def _count_unread(self) -> int:
        unread = 0
        try:
            self._socket.settimeout(0)
            # Bounded: nothing else runs meanwhile, and a fast engine could go on sending.
            for _ in range(LINE_LIMIT_BYTES // RECEIVE_BYTES):
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    break
                unread += self._body.feed(data).count(b"\n")
        except (OSError, ApplianceError):
            pass  # read so far as there was anything
        return unread


class _Body:
    """The payload inside an HTTP/1.1 response, chunked or not, from bytes cut anywhere."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.is_complete = False
        self._is_chunked = False
        self._left: int | None = None  # bytes to come of a body with a length
        self._pending = b""

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; return the payload in it.

        Raises: EngineFailed for bytes that are no HTTP response.
        """
        self._pending += data
        if self.status is None and not self._read_head():
            return b""
        if self._is_chunked:
            return self._read_chunks()
        payload, self._pending = self._pending, b""
        if self._left is not None:
            self._left -= len(payload)
            self.is_complete = self._left <= 0
        return payload

    def _read_head(self) -> bool:
        head, found, rest = self._pending.partition(b"\r\n\r\n")
        if not found:
            if len(head) > HEAD_LIMIT_BYTES:
                raise EngineFailed("The engine's response has an endless header.")
            return False
        status_line, *lines = head.split(b"\r\n")
        parts = status_line.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise EngineFailed(f"What answers on the engine's port speaks no HTTP: {_quote(repr(status_line))}")
        headers = {name.strip().lower(): value.strip().lower() for name, _, value in (x.partition(b":") for x in lines)}
        self.status = int(parts[1])
        self._is_chunked = headers.get(b"transfer-encoding") == b"chunked"
        length = headers.get(b"content-length", b"")
        self._left = int(length) if length.isdigit() else None
        self.is_complete = self._left == 0
        self._pending = rest
        return True

    def _read_chunks(self) -> bytes:
        payload, start, data = [], 0, self._pending
        while not self.is_complete and (eol := data.find(b"\r\n", start)) >= 0:
            try:
                size = int(data[start:eol].partition(b";")[0], 16)
            except ValueError as error:
                raise EngineFailed("The engine's response breaks HTTP's chunked framing.") from error
            if not 0 <= size <= LINE_LIMIT_BYTES:
                raise EngineFailed(f"The engine sent a chunk of {size} bytes, more than {LINE_LIMIT_BYTES}.")
            end = eol + 2 + size
            if len(data) < end + 2:
                break
            self.is_complete = size == 0  # trailers, if any, tell us nothing
            payload.append(data[eol + 2 : end])
            start = end + 2
        self._pending = b"" if self.is_complete else data[start:]
        if len(self._pending) > LINE_LIMIT_BYTES + RECEIVE_BYTES:
            raise EngineFailed("The engine's response breaks HTTP's chunked framing.")
        return b"".join(payload)


def _error_of(engine: Engine, status: int, body: bytes) -> ApplianceError:
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
            f"The engine does not have {engine.model}: {_quote(str(error))}. `ollama pull {engine.model}` on the node "
            "brings it.",
            retry_after_s=60,
        )
    if status == 503:
        return EngineBusy(f"The engine takes no more requests: {_quote(str(error))}", retry_after_s=RETRY_S)
    if status == 400 and (too_long := _too_long(engine, error)):
        return too_long
    return EngineFailed(f"The engine answered {status}: {_quote(str(error))}", retry_after_s=RETRY_S)


def _too_long(engine: Engine, error: Any) -> PromptTooLong | None:
    """llama-server's exceed_context_size_error, which Ollama passes on as an object or as JSON in a string."""
    if isinstance(error, str) and error.startswith("{"):
        try:
            error = msgspec.json.decode(error.encode())
        except msgspec.MsgspecError:
            return None
    if isinstance(error, dict):
        error = error.get("error", error)
    if isinstance(error, dict) and error.get("type") == "exceed_context_size_error":
        prompt_tokens = error.get("n_prompt_tokens")
        return PromptTooLong(
            f"prompt: {prompt_tokens} tokens with the system prompt and the chat template, but this node's N_CTX is "
            f"{engine.options.num_ctx}, of which at least one is the answer's. Shorten the prompt.",
            field="prompt",
            prompt_tokens=prompt_tokens,
            n_ctx=engine.options.num_ctx,
        )
    if "context" in str(error) and ("longer than" in str(error) or "exceed" in str(error)):
        return PromptTooLong(
            f"prompt: longer than this node's N_CTX of {engine.options.num_ctx} tokens. Shorten the prompt.",
            field="prompt",
            n_ctx=engine.options.num_ctx,
        )
    return None


def _quote(words: str) -> str:
    return words if len(words) <= QUOTED_CHARS else words[:QUOTED_CHARS] + "…"
