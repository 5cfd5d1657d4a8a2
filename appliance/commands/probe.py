"""`appliance probe`: proves that the service of these settings answers, by one real generation.

NotProven       what is wrong, in a sentence
└── NotYet      waiting may help
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from appliance import probekey
from appliance.commands.keys import opened
from appliance.commands.profile import profile_option
from appliance.commands.running import connection_to
from appliance.config import Config
from appliance.sources import ConfigError, load

ASK_EVERY_S = 0.5
RETRY_AT_MOST_S = 5.0
ANSWER_S = 120.0
PROMPT = "Say hello."
_FIGURES = {"tokens_per_second": "tokens_per_s"}  # the first contract's name, and ours

Headers = dict[str, str]


class NotProven(Exception):
    pass


class NotYet(NotProven):
    """pause_s: when to ask again."""

    def __init__(self, sentence: str, pause_s: float = ASK_EVERY_S) -> None:
        super().__init__(sentence)
        self.pause_s = min(max(pause_s, ASK_EVERY_S), RETRY_AT_MOST_S)


@click.command()
@profile_option()
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 86400),
    default=60.0,
    show_default=True,
    help="Seconds to wait until it is ready and has a slot; 0: do not.",
)
@click.option(
    "--tokens", type=click.IntRange(1, 2048), default=8, show_default=True, help="At most so many are generated."
)
@click.option("--release", "expected", metavar="NAME", help="Wait until this release is the one that answers.")
@click.option("--json", "as_json", is_flag=True, help="Print an object, also when it fails.")
def command(profile: Path | None, wait_s: float, tokens: int, expected: str | None, as_json: bool) -> None:
    """Prove that the service answers: wait until /ready says so, then have it generate through POST /generate.

    It sends a key of its own (owner `probe`), which it keeps as probe.key beside API_KEYS_DB and makes again when it
    does not work, so run it as the user the service runs as. What it waits for is told on standard error. The
    generation itself gets two minutes more.

    Exit status: 0 when it has answered, 1 when not (with the reason), 2 for wrong settings.
    """
    try:
        config = load(profile).config
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    probe = Probe(config, tokens, expected)
    try:
        proof = probe.prove(wait_s)
    except NotProven as error:
        if as_json:
            click.echo(json.dumps({**probe.found, "ready": False, "detail": str(error)}))
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(proof) if as_json else _in_words(proof))


class Probe:
    """One proof.

    expected: the release that must answer; None: any.
    """

    def __init__(self, config: Config, tokens: int, expected: str | None = None) -> None:
        self.found: dict[str, Any] = {"version": None, "release": None, "model": config.ollama_model}
        self._config = config
        self._tokens = tokens
        self._expected = expected
        self._key: str | None = None

    def prove(
        self,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> dict[str, Any]:
        """Return what was found and the answer's figures.

        Raises: NotProven.
        """
        began_at, said = clock(), ""
        while True:
            try:
                self._require_ready()
                waited_s = clock() - began_at
                return {**self.found, "ready": True, "waited_s": round(waited_s, 1), **self._generate()}
            except NotYet as reason:
                if clock() + reason.pause_s - began_at > wait_s:
                    raise NotProven(f"not within {wait_s:g} s: {reason}") from reason
                if str(reason) != said:
                    said = str(reason)
                    click.echo(f"waiting: {said}", err=True)
                sleep(reason.pause_s)

    def _require_ready(self) -> None:
        """Raises: NotYet when nothing answers, it is another release, or not ready."""
        _, health = self._get("/health")
        self.found |= {"version": health.get("version"), "release": health.get("release")}
        self.found["model"] = health.get("model_path", self.found["model"])
        if self._expected is not None and self.found["release"] != self._expected:
            answers = self.found["release"] or self.found["version"]
            raise NotYet(f"appliance {answers} answers, not {self._expected}; was the service restarted?")
        status, ready = self._get("/ready")
        if status != 200:
            raise NotYet(str(ready.get("reason", f"/ready answers {status}")))

    def _get(self, path: str) -> tuple[int, dict[str, Any]]:
        connection = connection_to(self._config)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, _object(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise NotYet(f"nothing answers on port {self._config.port} ({error})") from error
        finally:
            connection.close()

    def _generate(self) -> dict[str, Any]:
        """Raises: NotYet when the service takes no generation now, NotProven when it fails."""
        body = {"prompt": PROMPT, "max_tokens": self._tokens, "temperature": 0, "stream": True}
        headers = {
            "Content-Type": "application/json",
            "X-API-Key": self._own_key(),
            "X-Request-Timeout-S": f"{ANSWER_S:g}",
        }
        # Between two bytes there is at most SSE_PING_S.
        connection = connection_to(self._config, self._config.sse_ping_s + RETRY_AT_MOST_S)
        try:
            connection.request("POST", "/generate", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(_object(response.read()), f"POST /generate answers {response.status}")
            return _answer(response)
        except (OSError, http.client.HTTPException) as error:
            raise NotProven(f"the answer broke off: {error}") from error
        finally:
            connection.close()

    def _own_key(self) -> str:
        if self._key is None:
            with opened(self._config, must_exist=True) as store:
                try:
                    self._key = probekey.obtain(store)
                except OSError as error:
                    raise NotProven(f"the probe's key cannot be kept beside {store.path}: {error.strerror}.") from error
        return self._key


def _answer(response: http.client.HTTPResponse) -> dict[str, Any]:
    """The figures of a whole streamed answer, and its text."""
    ends_at = time.monotonic() + ANSWER_S
    text = ""
    for event, data in _events(response):
        if event == "token":
            text += data["token"]
        elif event == "error":
            raise _refusal(data, "the stream ended with an error")
        elif event == "done":
            if not data["completion_tokens"]:
                raise NotProven("the model answered nothing.")
            return {**{_FIGURES.get(name, name): value for name, value in data.items() if name != "done"}, "text": text}
        if time.monotonic() > ends_at:
            raise NotProven(f"no whole answer within {ANSWER_S:g} s.")
    raise NotProven("the answer broke off without its end.")


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events, and ("", {}) for a line that is none."""
    event = ""
    for line in response:
        name, _, value = line.decode().rstrip().partition(": ")
        if name == "event":
            event = value
        yield (event, json.loads(value)) if name == "data" else ("", {})


def _refusal(body: dict[str, Any], otherwise: str) -> NotProven:
    """Waiting helps where the service says how long."""
    sentence = str(body.get("detail", otherwise))
    return NotYet(sentence, body["retry_after_s"]) if "retry_after_s" in body else NotProven(sentence)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise NotYet("what answers there is not the appliance") from error
    return found if isinstance(found, dict) else {}


def _in_words(proof: dict[str, Any]) -> str:
    return (
        f"{proof['model']} answered {proof['completion_tokens']} tokens, the first after {proof['ttft_ms']:.0f} ms "
        f"(appliance {proof['release'] or proof['version']})"
    )
