"""Runs the service: gunicorn around one gevent worker, and what signals do to it.

    SIGTERM            drain, then exit 0 within DRAIN_S; a second one exits at once
    SIGINT, SIGQUIT    exit at once
    SIGUSR1, SIGUSR2   drain, resume (`appliance drain`, `appliance resume`)

The master process starts the worker again should it die. Everything with threads, sockets or a database is built in
the worker, after the fork.
"""

from __future__ import annotations

import logging
import os
import resource
import runpy
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from appliance import listening, one_worker, wire
from appliance.config import Config

CONF = Path(__file__).with_name("gunicorn.conf.py")
SPARE_FILES = 100  # beside the connections: the database, libraries, pipes
log = logging.getLogger("appliance")


class ApplianceServer(BaseApplication):
    """The service as a gunicorn application.

    pepper: the secret that keys are digested with, obtained before the fork so that a wrong one stops the start.
    Raises: TooManyWorkers.
    """

    def __init__(self, config: Config, pepper: bytes) -> None:
        self.config = config
        self._pepper = pepper
        super().__init__()
        one_worker.refuse_more(self.cfg.workers, "GUNICORN_CMD_ARGS")  # in load_config gunicorn would catch it

    def load_config(self) -> None:
        """gunicorn.conf.py, then GUNICORN_CMD_ARGS as with gunicorn itself."""
        for name, value in runpy.run_path(str(CONF), {"node": self.config}).items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)
        given = self.cfg.parser().parse_args(self.cfg.get_cmd_args_from_env())
        for name, value in vars(given).items():
            if value is not None and name in self.cfg.settings:
                self.cfg.set(name, value)
        self.cfg.set("post_fork", self._after_fork)
        self.cfg.set("post_worker_init", lambda worker: self._lifecycle.attach())

    def load(self) -> Any:
        from appliance.lifecycle import Lifecycle  # in the worker only: the master stays small

        self._lifecycle = Lifecycle(self.config, self._pepper)
        return self._lifecycle.app

    def run(self) -> None:
        # systemd is told READY by the worker when the model is warm; gunicorn would tell it now.
        self._notify_socket = os.environ.pop("NOTIFY_SOCKET", None)
        _allow_open_files(self.cfg.worker_connections + self.config.max_concurrent_requests + SPARE_FILES)
        OneWorkerArbiter(self).run()

    def _after_fork(self, arbiter: Arbiter, worker: Any) -> None:
        if self._notify_socket:
            os.environ["NOTIFY_SOCKET"] = self._notify_socket
        wire.take_over()
        listening.take_over()
        for listener in worker.sockets:
            listening.let_in(listener)
            wire.reset_unread(listener, self.config.client_timeout_s)


class OneWorkerArbiter(Arbiter):
    """gunicorn's master without the signals that would make a second worker, and with a drain that can be cut short."""

    _was_told_to_stop = False

    def signal(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal for the main loop.

        A worker just forked has this handler too, until it has its own; there nobody would ever look at the note, and
        a stop would wait for that worker in vain.
        """
        if os.getpid() != self.pid:
            if sig in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
                os._exit(0)
            return
        if sig == signal.SIGTERM and self._was_told_to_stop:
            sig = signal.SIGQUIT
        self._was_told_to_stop = self._was_told_to_stop or sig == signal.SIGTERM
        super().signal(sig, frame)

    def handle_usr1(self) -> None:
        """Drain."""
        self.kill_workers(signal.SIGUSR1)

    def handle_usr2(self) -> None:
        """Resume."""
        self.kill_workers(signal.SIGUSR2)

    def handle_ttin(self) -> None:
        log.warning(one_worker.WHY)

    handle_ttou = handle_ttin

    def handle_hup(self) -> None:
        log.warning("SIGHUP changes nothing: settings are read at start; restart the service.")


def _allow_open_files(number: int) -> None:
    """Shells and systemd start a process with a soft limit of 1024, which is less than the connections need.

    A sandbox may forbid even to ask (SystemCallFilter=~@resources); who sets one up sets LimitNOFILE= too.
    """
    with suppress(PermissionError, ValueError):  # ValueError is how setrlimit says that it may not
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
