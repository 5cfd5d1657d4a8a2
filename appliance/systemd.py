"""What systemd is told, where it asked to be told: readiness, status, signs of life."""

from __future__ import annotations

import logging
import os

import gevent
from gunicorn.systemd import sd_notify

log = logging.getLogger("appliance")


def notify(state: str) -> None:
    """Tell systemd READY=1, STATUS=…, WATCHDOG=1."""
    sd_notify(state, log)  # type: ignore[arg-type]  # any logger does


def spawn_watchdog() -> None:
    """Pet systemd's watchdog from the hub, so that a hanging hub is noticed (WatchdogSec=)."""
    every_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / 2

    def pet() -> None:
        while True:
            notify("WATCHDOG=1")
            gevent.sleep(every_s)

    if every_s:
        gevent.spawn(pet)
