"""Reads files of NAME=VALUE lines: profiles strictly, a `.env` as python-dotenv does.

A profile may be given to systemd (`EnvironmentFile=`) as well as to the appliance, so a line must mean the
same to both. What systemd and python-dotenv read differently is refused: backslashes, quotes within a value,
text after a quoted value, `export`, blanks around `=`, a comment behind a value. Settings are not known here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dotenv.parser import parse_stream

BYTE_ORDER_MARK = "\ufeff"
IGNORED = re.compile(r"[ \t]*(#.*)?")
LINE = re.compile(
    r"""(?P<name>[A-Za-z_][A-Za-z0-9_]*)=
    (?: '(?P<single>[^'\\\x00-\x1f\x7f]*)'
      | "(?P<double>[^"\\\x00-\x1f\x7f]*)"
      | (?P<bare>(?: [^\s'"\\\x00-\x1f\x7f] | (?<!=)[ ]+(?![ \t#]|$) )*)
    )[ \t]*""",
    re.VERBOSE,
)


class Assignment(NamedTuple):
    """One line; `name` is None where it is no assignment. Its text is not kept: it may hold a secret."""

    line: int
    name: str | None
    value: str


def read_text(path: Path, limit: int) -> str:
    """The text of a file of at most `limit` bytes.

    Raises: OSError; ValueError with the reason if it is larger, not UTF-8, or begins with a byte order mark.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    text = data.decode()
    if text.startswith(BYTE_ORDER_MARK):
        raise ValueError("it begins with a byte order mark; save it as plain UTF-8")
    return text


def strict(text: str) -> Iterator[Assignment]:
    """The lines of a profile: blank, `#` and a comment, or NAME=VALUE in the form that all read alike."""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        # Before version 254 systemd takes a comment that ends in a backslash to go on in the next line.
        if IGNORED.fullmatch(line) and not line.endswith("\\"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            yield Assignment(number, None, "")
            continue
        yield Assignment(number, match["name"], match["single"] or match["double"] or match["bare"] or "")


def lenient(text: str) -> Iterator[Assignment]:
    """The assignments of a `.env`: with `export`, comments behind values, escapes, values of many lines."""
    for binding in parse_stream(io.StringIO(text, newline="")):
        string = binding.original.string
        blank = string[: len(string) - len(string.lstrip())]
        number = binding.original.line + blank.count("\n")
        if binding.error or (binding.key is not None and binding.value is None):
            yield Assignment(number, None, "")
        elif binding.key is not None:
            yield Assignment(number, binding.key, binding.value or "")
