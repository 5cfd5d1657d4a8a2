"""Where the log goes, and what gunicorn need not say in it."""

from __future__ import annotations

import logging
import os
import sys

log = logging.getLogger("appliance")


def log_to_stderr(level: str) -> None:
    """One line an event; the journal adds its own time, a terminal gets one."""
    under_journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s" if under_journal else "%(asctime)s %(levelname)s %(message)s"))
    log.handlers = [handler]
    log.setLevel(level.upper())
    log.propagate = False
    logging.getLogger("gunicorn.error").addFilter(ClientsFaults())


class ClientsFaults(logging.Filter):
    """Keeps out of the log what clients do, which is no fault of the node, and which anybody could fill a disk with.

    1. One that stopped reading, and whose connection timed out.
    2. A request that is none: gunicorn would log the line it could not read, and that may hold a key.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], TimeoutError):
            return False
        return not str(record.msg).startswith("Invalid request from ip=")
