"""What can go wrong in the embedded engine.

EngineError          a request's answer: HTTP status and Ollama's own text
ClientGone           nobody reads the answer
SetupProblem         the engine cannot start: one sentence with the remedy
"""

from __future__ import annotations


class EngineError(Exception):
    """The answer `{"error": message}` with this HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ClientGone(Exception):
    """The client closed its connection."""


class SetupProblem(Exception):
    """The engine cannot start; the message says why and what to do."""
