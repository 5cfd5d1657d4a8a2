"""Keeps the model in the engine's memory, loaded with the node's own options, and knows whether it is there now.

A client that leaves while Ollama loads a model aborts the load, so loading is never left to a client's request: it is
done here, by a greenlet that no client can end, and requests wait for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import gevent
from gevent.event import AsyncResult

from appliance.engine import Engine
from appliance.errors import ApplianceError, EngineFailed, NotReady
from appliance.protocol import Prompt

CHECK_EVERY_S = 1.5  # an answer of the engine about itself is believed so long
RETRY_S = 1.0
RETRY_AT_MOST_S = 30.0

Load: TypeAlias = "gevent.Greenlet[[], ApplianceError | None]"  # its value: what went wrong, or None

log = logging.getLogger("appliance")


@dataclass(frozen=True)
class EngineState:
    """What the engine said of itself: `problem` is None when it answers."""

    is_reachable: bool
    is_loaded: bool
    problem: str | None = None


class Residency:
    """The model's way into memory, and its state there.

    keep_alive_s: how long the engine keeps an idle model; infinity for ever.
    warm_up: load it at start (OLLAMA_WARMUP); otherwise with the first request.
    on_stage: told of each new stage (systemd's STATUS= line).
    """

    def __init__(
        self,
        engine: Engine,
        keep_alive_s: float,
        *,
        warm_up: bool = True,
        on_stage: Callable[[str], None] = lambda stage: None,
        on_ready: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage = "starting"
        self.is_ready = False
        self.loads = 0
        self._engine = engine
        self._keep_alive_s = keep_alive_s
        self._warm_up = warm_up
        self._on_stage = on_stage
        self._on_ready = on_ready
        self._clock = clock
        self._used_at = float("-inf")
        self._state = EngineState(False, False, "not asked yet")
        self._checked_at = float("-inf")
        self._check: AsyncResult[EngineState] | None = None
        self._load: Load | None = None
        self._failure: ApplianceError | None = None  # of the last load
        self._load_again_at = float("-inf")
        self._pause_s = RETRY_S
        self._own_context = engine.options.num_ctx

    def start(self) -> gevent.Greenlet[[], None]:
        """Bring the model up in the background: wait for the engine, pull if missing, warm, be ready."""
        return gevent.spawn(self._bring_up)

    def used(self) -> None:
        """A generation has ended well, so the model is in memory and its idle time begins anew."""
        self._used_at = self._clock()

    def state(self) -> EngineState:
        """The engine's state, at most CHECK_EVERY_S old; callers at the same moment share one question."""
        if self._clock() - self._checked_at < CHECK_EVERY_S:
            return self._state
        if self._check is not None:
            return cast(EngineState, self._check.get())
        check = self._check = AsyncResult()
        try:
            self._state = self._ask()
            self._checked_at = self._clock()
        finally:
            self._check = None
            check.set(self._state)
        return self._state

    def reason_not_ready(self) -> str | None:
        """Why no generation can be taken now, or None.

        1. Still starting: the stage. 2. The engine does not answer. 3. It has lost the model before its time (a
        restart): load it again in the background, and say so. 4. Unloaded after its idle time: ready, for the next
        request loads it.
        """
        if not self.is_ready:
            return self.stage
        state = self.state()
        if not state.is_reachable:
            return state.problem
        if not state.is_loaded and not self._is_idle_expired():
            if self._begin_load() is None and self._failure is not None:
                return self._failure.detail
            return self.stage if self.stage != "ready" else "loading the model"
        return None

    def ensure_loaded(self) -> Load | None:
        """The load that a request must wait for, or None when the model is in memory.

        Raises: NotReady while starting; what the last load failed with, until it is time for another.
        """
        if not self.is_ready:
            raise NotReady(f"This node is not ready: {self.stage}.", retry_after_s=5)
        if self._load is not None:
            return self._load
        state = self.state()
        if state.is_loaded or not state.is_reachable:
            return None  # where it is unreachable, asking for the generation gives the honest error
        load = self._begin_load()
        if load is None and self._failure is not None:
            raise self._failure.with_traceback(None)  # the same one again: it must not gather frames
        return load

    def forget(self) -> None:
        """Believe nothing that was known: something else (a benchmark, a failure) may have changed the engine."""
        self._checked_at = float("-inf")

    def load(self) -> None:
        """Load the model with the node's own options by a generation of one token.

        Raises: ApplianceError.
        """
        self.loads += 1
        with self._engine.generate(Prompt("Hello")) as stream:
            while not stream.is_ended:
                stream.receive(timeout_s=60)
        self.used()
        self._note_context()
        self._state = EngineState(is_reachable=True, is_loaded=True)
        self._checked_at = self._clock()

    def _note_context(self) -> None:
        """Ollama cuts a context that is larger than the model was trained for; that is then this node's."""
        sizes = [m.context_length for m in self._engine.own_loaded_models() if m.context_length is not None]
        if sizes and max(sizes) < self._own_context:
            self._own_context = max(sizes)
            log.warning(
                "N_CTX=%d is more than %s takes; the engine gives it %d",
                self._engine.options.num_ctx,
                self._engine.model,
                self._own_context,
            )

    def _begin_load(self) -> Load | None:
        """The load under way; None where one has just failed and another would be too soon."""
        if self._load is None and self._clock() >= self._load_again_at:
            log.info("The engine does not hold %s; loading it", self._engine.model)
            self._load = gevent.spawn(self._reload)
        return self._load

    def _reload(self) -> ApplianceError | None:
        """Returns the error instead of raising it: every waiting request reports it, and the hub prints nothing."""
        try:
            if not self._engine.has_model():
                self._pull()
            self.load()
        except ApplianceError as error:
            log.warning("Loading %s failed: %s", self._engine.model, error.detail)
            self._failure = error
            self._load_again_at = self._clock() + self._pause_s
            self._pause_s = min(self._pause_s * 2, RETRY_AT_MOST_S)
        else:
            self._failure, self._pause_s = None, RETRY_S
        finally:
            self._load = None
            self._enter("ready", logging.DEBUG)
        return self._failure

    def _is_idle_expired(self) -> bool:
        return self._clock() - self._used_at >= self._keep_alive_s or self._used_at == float("-inf")

    def _ask(self) -> EngineState:
        try:
            ours = self._engine.own_loaded_models()
        except ApplianceError as error:
            return EngineState(is_reachable=False, is_loaded=False, problem=error.detail)
        return EngineState(
            is_reachable=True, is_loaded=any(m.context_length in (None, self._own_context) for m in ours)
        )

    def _bring_up(self) -> None:
        pause_s = RETRY_S
        while True:
            try:
                self._bring_up_once()
                return
            except ApplianceError as error:
                self._enter(f"waiting: {error.detail}", logging.WARNING)
            gevent.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_AT_MOST_S) if self._is_engine_up() else RETRY_S

    def _bring_up_once(self) -> None:
        if not self._engine.has_model():
            self._pull()
        if self._warm_up:
            self._enter(f"loading {self._engine.model}")
            self.load()
        self.is_ready = True
        self._enter("ready")
        self._on_ready()

    def _pull(self) -> None:
        self._enter("pulling model")
        logged_tenth = -1
        for status, share in self._engine.pull():
            if share is None:
                self._enter(f"pulling model ({status})", logging.DEBUG)
                continue
            tenth = int(share * 10)
            self._enter(
                f"pulling model {share:.0%}".replace("%", " %"),
                logging.INFO if tenth != logged_tenth else logging.DEBUG,
            )
            logged_tenth = tenth
        if not self._engine.has_model():
            raise EngineFailed(f"The engine has pulled {self._engine.model} and does not have it.")

    def _is_engine_up(self) -> bool:
        self.forget()
        return self.state().is_reachable

    def _enter(self, stage: str, level: int = logging.INFO) -> None:
        """Log once a state."""
        if stage == self.stage:
            return
        self.stage = stage
        log.log(level, "%s", stage[:1].upper() + stage[1:])
        self._on_stage(stage)
