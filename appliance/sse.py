"""The bytes of server-sent events. Pure; see the HTML standard, section 9.2."""

from __future__ import annotations

import json
from typing import Any

import msgspec

PING = b": ping\n\n"

_encode = msgspec.json.Encoder().encode


def token(text: str) -> bytes:
    """A piece of the answer. One a token: the hottest bytes of the service."""
    return b'event: token\ndata: {"token": %b, "done": false}\n\n' % _encode(text)


def event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
