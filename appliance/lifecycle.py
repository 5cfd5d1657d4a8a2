"""The worker's side: builds the collaborators, and drains them when told."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path

import gevent

from appliance import listening, systemd
from appliance.admission import Admission
from appliance.app import create_app
from appliance.config import Config
from appliance.engine import Engine
from appliance.keyring import KeyRing
from appliance.keys import KeyStore
from appliance.logs import log_to_stderr
from appliance.protocol import LoadOptions
from appliance.recordstream import Patience
from appliance.residency import Residency

POLL_S = 0.05
CLOSING_S = 1.0  # for the last events of generations that are cut off

log = logging.getLogger("appliance")


class Lifecycle:
    """Everything that one worker serves with."""

    def __init__(self, config: Config, pepper: bytes) -> None:
        self._config = config
        self._is_stopping = False
        log_to_stderr(config.log_level)
        self._engine = Engine(
            config.ollama_port,
            config.ollama_model,
            LoadOptions(config.n_ctx, config.n_threads, config.n_batch),
            config.keep_alive,
            Patience(
                config.engine_connect_timeout_s, config.engine_first_token_timeout_s, config.engine_stall_timeout_s
            ),
        )
        self._keys = KeyRing(KeyStore(Path(config.api_keys_db), pepper, key_limit=config.key_limit))
        self._admission = Admission(config.max_concurrent_requests, config.max_queue_size)
        self._residency = Residency(
            self._engine,
            config.keep_alive_s,
            warm_up=config.ollama_warmup,
            on_stage=lambda stage: systemd.notify(f"STATUS={stage}"),
            on_ready=self._say_ready,
        )
        self.app = create_app(config, self._keys, self._admission, self._engine, self._residency)

    def attach(self) -> None:
        """Take over the worker's signals, and begin to bring the model up."""
        signal.signal(signal.SIGTERM, lambda *_: gevent.spawn(self._stop))
        signal.signal(signal.SIGUSR1, lambda *_: gevent.spawn(self._drain))
        signal.signal(signal.SIGUSR2, lambda *_: gevent.spawn(self._resume))
        log.info("Listening on http://%s", self._config.bind)
        if self._config.key_issuance == "open":
            log.warning("KEY_ISSUANCE=open: everybody who reaches this port can make a key")
        systemd.spawn_watchdog()
        self._residency.start()

    def _say_ready(self) -> None:
        systemd.notify(f"READY=1\nSTATUS=serving {self._engine.model}")

    def _drain(self) -> None:
        if self._admission.is_draining:
            return
        log.info("Draining: %d running, %d waiting", self._admission.running, self._admission.waiting)
        self._admission.drain()
        systemd.notify("STATUS=draining")

    def _resume(self) -> None:
        log.info("Taking generations again")
        self._admission.resume()
        systemd.notify("STATUS=serving")

    def _stop(self) -> None:
        """Drain, wait for what runs, cut off what is left, end the worker.

        Ends by SystemExit, which gevent raises in the worker's main greenlet, as gunicorn's own SIGQUIT does: its
        graceful way would look once a second, wait for idle keep-alive connections too, and overrun DRAIN_S.

        Told twice, by systemd and by the master, it does so once: the second would end the worker while the first
        still writes to the key database.
        """
        if self._is_stopping:
            return
        self._is_stopping = True
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # too late to resume
        systemd.notify("STOPPING=1")
        self._drain()
        self._wait_until_idle(self._config.drain_s - CLOSING_S)
        self._admission.cut_off_running()
        self._wait_until_idle(CLOSING_S / 2)
        gevent.sleep(POLL_S)  # for the last events, those of the line too
        listening.stop_listening()
        self._wait_for_connections(CLOSING_S / 4)
        self._keys.close()
        sys.exit(0)

    def _wait_for_connections(self, limit_s: float) -> None:
        """Let those that were just accepted have their answer; idle ones of clients that may come back are cut."""
        ends_at = time.monotonic() + limit_s
        while listening.open_connections() and time.monotonic() < ends_at:
            gevent.sleep(POLL_S / 5)

    def _wait_until_idle(self, limit_s: float) -> None:
        ends_at = time.monotonic() + limit_s
        while self._admission.running and time.monotonic() < ends_at:
            gevent.sleep(POLL_S)
