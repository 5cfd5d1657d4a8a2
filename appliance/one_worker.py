"""Why the service has one worker, and the refusal of more. Knows no gunicorn, which reads WEB_CONCURRENCY itself."""

from __future__ import annotations

WHY = (
    "One worker by design: the queue, its fairness and the key table live in one process, and a node's limit is its "
    "model. Use MAX_CONCURRENT_REQUESTS for more requests at a time."
)


class TooManyWorkers(Exception):
    """WEB_CONCURRENCY, -w or GUNICORN_CMD_ARGS asks for other than one worker."""


def refuse_more(workers: int | str, source: str) -> None:
    """Raises: TooManyWorkers unless `workers` is 1."""
    if str(workers).strip() != "1":
        raise TooManyWorkers(f"{source} asks for {workers!r} workers; allowed: 1. {WHY}")
