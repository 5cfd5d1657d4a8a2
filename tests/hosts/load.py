"""Clients that use a fleet as sensible ones do: a node that refuses is left for the next, anything else is a failure.

Each client asks again soon after an answer, for streamed and for whole ones in turn, and begins at another node each
time, so that every node is asked at every moment of a roll.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

TIMEOUT_S = 60.0
ROUNDS, PAUSE_S = 120, 0.25  # of one that every node refused, and between two requests
REFUSALS = (429, 503)
PROMPT = "Count to ten."


class RefusedHere(Exception):
    """This node takes nothing now."""


class Failed(Exception):
    """What no client should see."""


@dataclass(frozen=True)
class Answer:
    """One request as its client saw it. refused_by: the nodes asked before; failure: None when it went well."""

    node: str
    is_streamed: bool
    refused_by: tuple[str, ...] = ()
    failure: str | None = None


@dataclass
class Load:
    """Clients that run in threads until told to stop. addresses: of the nodes, by name."""

    addresses: dict[str, str]
    key: str
    clients: int = 3
    port: int = 8000
    tokens: int = 24
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.failure]

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Clients ask while the block runs; those under way at its end are waited for."""
        threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _ask_on(self, number: int) -> None:
        names, turn = list(self.addresses), number
        while not self._stop.is_set():
            first = turn % len(names)
            self.answers.append(self._ask([*names[first:], *names[:first]], is_streamed=turn % 2 == 0))
            turn += 1
            self._stop.wait(PAUSE_S)

    def _ask(self, nodes: Sequence[str], *, is_streamed: bool) -> Answer:
        """One request, node after node until one takes it."""
        refused: list[str] = []
        for _ in range(ROUNDS):
            for node in nodes:
                try:
                    self._generate(self.addresses[node], is_streamed)
                except RefusedHere:
                    refused.append(node)
                except (Failed, OSError, http.client.HTTPException, ValueError) as error:
                    return Answer(node, is_streamed, tuple(refused), f"{type(error).__name__}: {error}")
                else:
                    return Answer(node, is_streamed, tuple(refused))
            self._stop.wait(PAUSE_S)
        return Answer(nodes[0], is_streamed, tuple(refused), "every node refused, again and again")

    def _generate(self, address: str, is_streamed: bool) -> None:
        """Raises: RefusedHere, Failed, and what http.client raises."""
        connection = http.client.HTTPConnection(address, self.port, timeout=TIMEOUT_S)
        try:
            connection.connect()
        except ConnectionRefusedError:
            raise RefusedHere from None
        try:
            body = {"prompt": PROMPT, "max_tokens": self.tokens, "temperature": 0, "stream": is_streamed}
            headers = {"Content-Type": "application/json", "X-API-Key": self.key}
            connection.request("POST", "/generate", json.dumps(body), headers)
            answer = connection.getresponse()
            if answer.status in REFUSALS:
                raise RefusedHere
            if answer.status != 200:
                raise Failed(f"HTTP {answer.status}: {answer.read(500)!r}")
            if is_streamed:
                require_whole_stream(answer)
            else:
                require_whole_answer(json.load(answer))
        finally:
            connection.close()


def require_whole_answer(answer: dict[str, object]) -> None:
    """Raises: Failed."""
    if answer.get("finish_reason") not in ("length", "stop") or not answer.get("completion_tokens"):
        raise Failed(f"not a whole answer: {answer}")


def require_whole_stream(lines: Iterator[bytes] | http.client.HTTPResponse) -> None:
    """Read server-sent events to their end.

    A refusal that comes while the request waits in line arrives as an event, for the stream has begun then; after the
    first token an error of any kind is a failure.
    Raises: RefusedHere, Failed.
    """
    event, tokens = "", 0
    for line in lines:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            event = value
        if name != "data":
            continue
        if event == "token":
            tokens += 1
        elif event == "done":
            require_whole_answer(json.loads(value))
            return
        elif event == "error":
            if not tokens and "retry_after_s" in value:
                raise RefusedHere
            raise Failed(f"after {tokens} tokens: {value}")
    raise Failed(f"the stream broke off after {tokens} tokens")
