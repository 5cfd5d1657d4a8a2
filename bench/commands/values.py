"""Option values that click has no type for; a wrong one names the option, what was given and what is allowed."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import click

from bench.running.summary import ServiceLevel

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Numbers(click.ParamType[Any]):
    """Numbers separated by commas, each within bounds."""

    name = "N,N,…"

    def __init__(self, least: float, most: float, is_whole: bool) -> None:
        self._least, self._most, self._is_whole = least, most, is_whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        kind = "whole numbers" if self._is_whole else "numbers"
        try:
            numbers = tuple((int if self._is_whole else float)(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(self._least <= number <= self._most for number in numbers):
            self.fail(f"{value!r}: {kind} from {self._least:g} to {self._most:g}, separated by commas.", param, ctx)
        return numbers


class Duration(click.ParamType[Any]):
    """Seconds: 90, 90s, 1.5m, 200ms."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = seconds_of(value) if isinstance(value, str) else value
        if seconds is None or seconds <= 0:
            self.fail(f"{value!r}: a duration above 0, such as 90s, 200ms or 1.5m.", param, ctx)
        return seconds


class Level(click.ParamType[Any]):
    """A service level: ttft=2s,tpot=200ms,e2e=30s."""

    name = "ttft=…,tpot=…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, ServiceLevel):
            return value
        limits: dict[str, float] = {}
        for part in value.split(","):
            name, found, given = part.partition("=")
            seconds = seconds_of(given)
            if not found or name not in ("ttft", "tpot", "e2e") or name in limits or not seconds:
                self.fail(f"{part!r}: ttft, tpot and e2e, each once with a duration: ttft=2s,tpot=200ms.", param, ctx)
            limits[name] = seconds
        return ServiceLevel(**{f"{name}_s": limit for name, limit in limits.items()})


class Node(click.ParamType[Any]):
    """[NAME=]URL; gives a name and a URL."""

    name = "[NAME=]URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        name, found, url = value.partition("=")
        if not found or "/" in name:
            name, url = "", value
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment:
            self.fail(f"{value!r}: a URL such as http://pi1.local:8000, or NAME=URL.", param, ctx)
        name = name or (f"{host}-{port}" if port else host).replace(":", ".")
        if not NAME.fullmatch(name):
            self.fail(f"{name!r}: a name of letters, digits, dots, dashes and underscores.", param, ctx)
        return name, url


def seconds_of(text: str) -> float | None:
    """The duration that a text says; None where it says none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text.strip())
    return float(match[1]) * UNITS_S[match[2] or "s"] if match else None
