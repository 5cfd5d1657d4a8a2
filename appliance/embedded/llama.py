"""The only file that knows xllamacpp: load a model, render its chat template, tokenize, complete.

xllamacpp runs llama.cpp's server in threads of this process. Completions go through it directly. What it offers
only over its own HTTP port on loopback (templates, tokens) goes there; the port asks for a random key that only we
know.
"""

from __future__ import annotations

import ctypes
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from importlib import import_module
from types import ModuleType
from typing import Any

from appliance.embedded.bodies import Message
from appliance.embedded.errors import ClientGone, EngineError, SetupProblem
from appliance.embedded.gguf import Model
from appliance.embedded.options import LoadOptions, RunOptions

_ERRORS_ONLY = 1
_M_ARENA_MAX = -8  # of glibc's malloc.h


def library() -> ModuleType:
    """Import xllamacpp. Raises: SetupProblem with the command that brings what is missing."""
    try:
        return import_module("xllamacpp")
    except ModuleNotFoundError:
        raise SetupProblem(
            "the embedded engine needs xllamacpp; in the project's folder run:"
            f" {sys.executable} -m pip install '.[embedded]'"
        ) from None
    except ImportError as error:
        if "libgomp.so.1" in str(error):
            raise SetupProblem(
                "the embedded engine needs the system's libgomp.so.1; run: sudo apt-get install libgomp1"
            ) from None
        raise SetupProblem(
            f"xllamacpp does not work on this machine ({error}); in the project's folder run:"
            f" {sys.executable} -m pip install --force-reinstall '.[embedded]'"
        ) from None


def use_one_arena() -> None:
    """Have glibc keep one heap for all threads; without effect once a thread has run, as in xllamacpp's import.

    By default each thread that loads a model leaves its own freed heap behind: in a run of 100 reloads the process
    grew from 270 to 460 MB, where with one heap it stays at 110.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@dataclass(frozen=True)
class Completed:
    """The end of one generation: the last text, why it ended, and llama.cpp's own counts and times."""

    text: str
    done_reason: str
    prompt_eval_count: int
    prompt_eval_ns: int
    eval_count: int
    eval_ns: int


class Llama:
    """One loaded model with `parallel` slots of load.num_ctx tokens each."""

    def __init__(self, model: Model, load: LoadOptions, parallel: int) -> None:
        """Raises: EngineError 500 when llama.cpp cannot load the file."""
        xllamacpp = library()
        params = xllamacpp.CommonParams()
        params.model.path = str(model.path)
        params.n_parallel, params.n_ctx = parallel, load.num_ctx * parallel
        params.n_batch = params.n_ubatch = load.num_batch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = load.num_thread
        params.ctx_shift, params.n_keep = load.context_shift, RunOptions.num_keep
        params.cache_ram_mib = 0  # a second prompt cache, of up to 8 GiB by default
        params.verbosity = _ERRORS_ONLY
        params.ui, params.n_threads_http = False, 2
        self._key = secrets.token_hex()
        params.api_keys = [self._key]
        try:
            self._server: Any = xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineError(500, f"llama runner failed to load model: {error}") from None
        self._address = self._server.listening_address.removeprefix("http://")

    def close(self) -> None:
        """Free the model. Nothing may be running."""
        self._server = None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's own chat template makes of the messages."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(self._post("/apply-template", {"messages": turns})["prompt"])

    def tokenize(self, text: str) -> list[int]:
        tokens: list[int] = self._post("/tokenize", {"content": text, "add_special": True})["tokens"]
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        return str(self._post("/detokenize", {"tokens": list(tokens)})["content"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = HTTPConnection(self._address, timeout=60)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read().decode("utf-8", "replace")
        finally:
            connection.close()
        if response.status >= 400:
            raise EngineError(response.status, data)
        answer: dict[str, Any] = json.loads(data)
        return answer

    def complete(
        self,
        prompt: str | list[int],
        run: RunOptions,
        token_limit: int,
        schema: dict[str, Any] | None,
        on_text: Callable[[str], None],
        is_gone: Callable[[], bool],
    ) -> Completed:
        """Generate; `on_text` gets each piece as it is made, in this thread.

        prompt: text or token ids. token_limit: how many to make at most. schema: of the JSON to answer with.
        is_gone: asked at every batch of the prompt and every token; llama.cpp can stop only there.
        Raises: ClientGone, EngineError with llama.cpp's own status and text, and what `on_text` raises.
        """
        request = {
            "prompt": prompt,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,  # one record a batch of the prompt, and with it the chance to stop
            "cache_prompt": True,
            "n_predict": token_limit,
            "n_keep": run.num_keep,
            "temperature": run.temperature,
            "top_k": run.top_k,
            "top_p": run.top_p,
            "min_p": run.min_p,
            "typical_p": run.typical_p,
            "repeat_last_n": run.repeat_last_n,
            "repeat_penalty": run.repeat_penalty,
            "presence_penalty": run.presence_penalty,
            "frequency_penalty": run.frequency_penalty,
            "seed": run.seed & 0xFFFFFFFF,  # -1 becomes llama.cpp's "choose one"
            "stop": run.stop,
        }
        if schema is not None:
            request["json_schema"] = schema
        ending = _Ending(on_text, is_gone)
        self._server.handle_completions(request, ending.take)
        return ending.result()


class _Ending:
    """Collects what llama.cpp calls back with, exceptions too: xllamacpp would swallow them."""

    def __init__(self, on_text: Callable[[str], None], is_gone: Callable[[], bool]) -> None:
        self._on_text = on_text
        self._is_gone = is_gone
        self._last: dict[str, Any] | None = None
        self._problem: BaseException | None = None

    def take(self, record: dict[str, Any]) -> bool:
        """One record of the stream. Returns: True to stop the generation."""
        try:
            self._read(record)
        except BaseException as problem:
            self._problem = problem
        return self._problem is not None

    def _read(self, record: dict[str, Any]) -> None:
        if "error" in record:
            body = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            raise EngineError(int(record["error"].get("code", 500)), body)
        if self._is_gone():
            raise ClientGone
        choice = record["choices"][0] if record.get("choices") else {}
        if choice.get("finish_reason"):
            self._last = record
        elif choice.get("text"):
            self._on_text(choice["text"])

    def result(self) -> Completed:
        if self._problem is not None:
            raise self._problem
        if self._last is None:
            raise EngineError(500, "an error was encountered while running the model: unexpected EOF")
        choice, timings = self._last["choices"][0], self._last["timings"]
        return Completed(
            text=choice.get("text") or "",
            done_reason="length" if choice["finish_reason"] == "length" else "stop",
            prompt_eval_count=timings["cache_n"] + timings["prompt_n"],  # as Ollama: with those from the cache
            prompt_eval_ns=int(timings["prompt_ms"] * 1e6),
            eval_count=timings["predicted_n"],
            eval_ns=int(timings["predicted_ms"] * 1e6),
        )
