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
    logging.getLogger("gunicorn.error").addFilter(Departures())


class Departures(logging.Filter):
    """Keeps out of the log what clients do: one that stopped reading, and whose connection timed out, is no error."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], TimeoutError))
