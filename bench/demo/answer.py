"""One answer of a node, shown token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import click

from bench.demo.failed import DemoFailed
from bench.demo.node import HOST

PROMPT = "Explain gravity in one sentence."
TIMEOUT_S = 60.0


def show(port: int, key: str) -> None:
    """Raises: DemoFailed."""
    click.secho(f"> {PROMPT}", bold=True)
    for event, data in _events(port, key):
        if event == "token":
            click.echo(data["token"], nl=False)
        elif event == "error":
            raise DemoFailed(data["detail"])
        elif event == "done":
            click.echo(
                f"\n\n{data['completion_tokens']} tokens, the first after {data['ttft_ms']:.0f} ms, "
                f"then {data['tokens_per_second'] or 0:.0f} a second ({data['finish_reason']})"
            )


def _events(port: int, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of one answer, as they come."""
    connection = HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    headers = {"Content-Type": "application/json", "X-API-Key": key}
    connection.request("POST", "/generate", json.dumps({"prompt": PROMPT}), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise DemoFailed(f"the appliance answered {response.status}: {response.read().decode()}")
    event = ""
    for line in response:
        name, _, value = line.decode().strip().partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            yield event, json.loads(value)
    connection.close()
