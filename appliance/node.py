"""GET /node: what makes this node's figures its own, and what may spoil them; for those who measure, so with a key.

The machine's part is machine.py's. A machine that lacks something, or an engine that does not answer, makes nulls: this
route fails for neither. Nothing here takes long: files are read in a thread, and the engine is asked three short
questions, once for all who ask in the same second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import falcon
import gevent
import msgspec
from gevent.event import AsyncResult

from appliance import __release__, __version__, machine
from appliance.bandwidth_probe import Bandwidth
from appliance.config import SETTINGS, Config
from appliance.engine import Engine
from appliance.errors import ApplianceError
from appliance.machine import Machine, Throttling

BELIEVED_S = 1.0
WATCH_EVERY_S = 2.0  # as often as the kernel asks the firmware
WATCH_FOR_S = 15 * 60.0  # after the last that asked; a node that nobody measures has no use of it


class ThrottlingSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen between two questions, too: how many looks, one every 2 s, found which bit set.

    Looking begins with the first GET /node and ends a quarter of an hour after the last, so who measures asks before,
    during and after, and compares.
    """

    looks: int
    times: dict[str, int]


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """num_parallel: the slots that the node is configured for; Ollama does not tell what it has.

    problem: why the engine did not answer, or null.
    """

    version: str | None
    num_parallel: int
    problem: str | None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """size_bytes: of all the model's files, which is what a decoded token reads, but for the KV cache.

    trained_context: the most that the model takes. loaded_context: what the engine holds it with now, as it says; null
    when it is not in memory.
    """

    name: str
    digest: str | None
    size_bytes: int | None
    quantization: str | None
    parameters: str | None
    family: str | None
    trained_context: int | None
    is_loaded: bool
    loaded_context: int | None


class ApplianceFacts(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    release: str | None
    uptime_s: int


class NodeAnswer(Machine, frozen=True, kw_only=True):
    """GET /node. Null is what this machine does not have or does not tell.

    bandwidth: how fast memory was read when POST /node/bandwidth measured it last, since the service started.
    """

    throttling_seen: ThrottlingSeen
    bandwidth: Bandwidth | None
    engine: EngineFacts
    model: ModelFacts
    appliance: ApplianceFacts
    settings: dict[str, Any]


class ThrottleWatch:
    """Counts the looks at the throttle bits that found one set. A look is a file of the kernel's memory, no disk."""

    def __init__(self, look: Callable[[], Throttling | None], clock: Callable[[], float] = time.monotonic) -> None:
        self.looks = 0
        self.times: dict[str, int] = {}
        self._look = look
        self._clock = clock
        self._wanted_until = float("-inf")
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def want(self) -> None:
        """Look now and go on looking for WATCH_FOR_S."""
        self._wanted_until = self._clock() + WATCH_FOR_S
        if self._greenlet is None:
            self.count()
            self._greenlet = gevent.spawn(self._go_on)

    def count(self) -> None:
        found = self._look()
        if found is None:
            return
        self.looks += 1
        for name in found.now:
            self.times[name] = self.times.get(name, 0) + 1

    def _go_on(self) -> None:
        try:
            while self._clock() < self._wanted_until:
                gevent.sleep(WATCH_EVERY_S)
                self.count()
        finally:
            self._greenlet = None


class Node:
    """The resource.

    bandwidth: the last figure of POST /node/bandwidth.
    read: what the machine says; it may block, and is called in a thread.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        bandwidth: Callable[[], Bandwidth | None] = lambda: None,
        read: Callable[[], Machine] | None = None,
        watch: ThrottleWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        state = Path(config.api_keys_db).absolute().parent
        self._engine = engine
        self._bandwidth = bandwidth
        self._slots = config.max_concurrent_requests
        self._settings = settings_in_force(config)
        self._read = read or (lambda: machine.read(state))
        self._watch = watch or ThrottleWatch(lambda: machine.throttling(machine.ROOT))
        self._clock = clock
        self._began_at = clock()
        self._answer: dict[str, Any] = {}
        self._answered_at = float("-inf")
        self._asking: AsyncResult[None] | None = None

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._watch.want()
        while self._clock() - self._answered_at >= BELIEVED_S:
            if self._asking is None:
                self._ask()
            else:
                self._asking.wait()
        resp.media = self._answer

    def _ask(self) -> None:
        asking = self._asking = AsyncResult()
        try:
            self._answer = msgspec.to_builtins(self._facts())
            self._answered_at = self._clock()
        finally:
            self._asking = None
            asking.set(None)

    def _facts(self) -> NodeAnswer:
        found: Machine = gevent.get_hub().threadpool.apply(self._read)
        engine, model = self._engine_facts()
        return NodeAnswer(
            **{name: getattr(found, name) for name in Machine.__struct_fields__},
            throttling_seen=ThrottlingSeen(looks=self._watch.looks, times=dict(self._watch.times)),
            bandwidth=self._bandwidth(),
            engine=engine,
            model=model,
            appliance=ApplianceFacts(
                version=__version__, release=__release__, uptime_s=round(self._clock() - self._began_at)
            ),
            settings=self._settings,
        )

    def _engine_facts(self) -> tuple[EngineFacts, ModelFacts]:
        version, stored, loaded, problem = None, None, [], None
        try:
            version = self._engine.version()
            stored = self._engine.stored_model()
            loaded = self._engine.own_loaded_models()
        except ApplianceError as error:
            problem = error.detail
        details = stored.details if stored else None
        return EngineFacts(version=version, num_parallel=self._slots, problem=problem), ModelFacts(
            name=self._engine.model,
            digest=(stored.digest or None) if stored else None,
            size_bytes=(stored.size or None) if stored else None,
            quantization=details.quantization_level if details else None,
            parameters=details.parameter_size if details else None,
            family=details.family if details else None,
            trained_context=details.context_length if details else None,
            is_loaded=bool(loaded),
            loaded_context=loaded[0].context_length if loaded else None,
        )


def settings_in_force(config: Config) -> dict[str, Any]:
    """Every setting that is no secret, under its name in the environment."""
    return {name: getattr(config, row.field) for name, row in SETTINGS.items() if not row.secret}
