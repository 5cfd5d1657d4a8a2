"""The JSON bodies of the API's requests, with the error texts of Ollama's decoder. Pure: knows no HTTP.

Ollama is written in Go: its decoder reads the first JSON value and ignores what follows, takes null for "not
given", ignores unknown fields, and puts U+FFFD where the bytes are no UTF-8 or an escape is half a surrogate pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.embedded.errors import EngineError
from appliance.embedded.options import parse_keep_alive

_GO_KIND = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}
_PYTHON_TYPE: dict[str, type] = {
    "string": str,
    "bool": bool,
    "int": int,
    "map[string]interface {}": dict,
    "[]int": list,
    "[]api.Message": list,
    "[]api.ImageData": list,
    "api.Tools": list,
}
_COMMON = {
    "model": "string",
    "stream": "bool",
    "options": "map[string]interface {}",
    "truncate": "bool",
    "shift": "bool",
    "logprobs": "bool",
    "top_logprobs": "int",
}
_GENERATE = _COMMON | {
    "prompt": "string",
    "suffix": "string",
    "system": "string",
    "template": "string",
    "context": "[]int",
    "raw": "bool",
    "images": "[]api.ImageData",
}
_CHAT = _COMMON | {"messages": "[]api.Message", "tools": "api.Tools"}
_NAMED = {"model": "string", "name": "string", "stream": "bool", "insecure": "bool", "verbose": "bool"}


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Ask:
    """What POST /api/generate and POST /api/chat have in common, and each one's own fields."""

    model: str
    stream: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    format: Any = None
    thinks: bool = False
    truncate: bool = True
    shift: bool = True
    messages: tuple[Message, ...] = ()
    has_tools: bool = False
    has_images: bool = False
    prompt: str = ""
    system: str = ""
    suffix: str = ""
    template: str = ""
    context: tuple[int, ...] = ()
    raw: bool = False

    @property
    def unloads(self) -> bool:
        """Nothing to generate and nothing to keep: the request wants the model out of memory."""
        return self.is_empty and self.keep_alive_s == 0

    @property
    def is_empty(self) -> bool:
        return not self.prompt and not self.messages


def _whole(value: Any) -> Any:
    """The value with U+FFFD in place of half surrogate pairs, which no encoder takes."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not value.isascii() else value
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


def _syntax_error(text: str, at: int) -> EngineError:
    while at < len(text) and text[at].isspace():
        at += 1
    if at >= len(text):
        return EngineError(400, "unexpected EOF")
    return EngineError(400, f"invalid character '{text[at]}' looking for beginning of value")


def _no_constant(name: str) -> Any:
    raise EngineError(400, f"invalid character '{name[0]}' looking for beginning of value")


def decode(body: bytes, struct: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The first JSON object in the body, its fields checked against Go's types; null fields are left out.

    Raises: EngineError 400.
    """
    text = body.decode("utf-8", "replace").lstrip()
    if not text:
        raise EngineError(400, "missing request body")
    try:
        value, _ = json.JSONDecoder(parse_constant=_no_constant).raw_decode(text)
        value = _whole(value)
    except json.JSONDecodeError as error:
        raise _syntax_error(text, error.pos) from None
    except RecursionError:
        raise EngineError(400, "exceeded max depth") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        kind = _GO_KIND[type(value)]
        raise EngineError(400, f"json: cannot unmarshal {kind} into Go value of type api.{struct}")
    given = {name: item for name, item in value.items() if item is not None}
    for name, item in given.items():
        if name in fields:
            _check(item, fields[name], f"{struct}.{name}")
    return given


def _check(item: Any, go_type: str, where: str) -> None:
    kind = _GO_KIND[type(item)]
    if go_type == "int" and isinstance(item, float):
        raise EngineError(400, f"json: cannot unmarshal number {item} into Go struct field {where} of type int")
    if type(item) is not _PYTHON_TYPE[go_type]:
        raise EngineError(400, f"json: cannot unmarshal {kind} into Go struct field {where} of type {go_type}")
    if isinstance(item, list) and go_type == "[]int":
        for entry in item:
            _check(entry, "int", where)


def _think(value: Any) -> bool:
    levels = ("high", "medium", "low", "max")
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise EngineError(400, 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)')
    if value not in levels:
        raise EngineError(
            400, f'invalid think value: "{value}" (must be "high", "medium", "low", "max", true, or false)'
        )
    return True


def _common(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an Ask that both routes share."""
    if not 0 <= given.get("top_logprobs", 0) <= 20:
        raise EngineError(400, "top_logprobs must be between 0 and 20")
    try:
        keep_alive_s = parse_keep_alive(given["keep_alive"]) if "keep_alive" in given else None
    except ValueError as error:
        raise EngineError(400, str(error)) from None
    return {
        "model": given.get("model", ""),
        "stream": given.get("stream", True),
        "options": given.get("options", {}),
        "keep_alive_s": keep_alive_s,
        "format": given.get("format") or None,
        "thinks": _think(given.get("think", False)),
        "truncate": given.get("truncate", True),
        "shift": given.get("shift", True),
    }


def parse_generate(body: bytes) -> Ask:
    """The body of POST /api/generate. Raises: EngineError 400."""
    given = decode(body, "GenerateRequest", _GENERATE)
    own = {name: given[name] for name in ("prompt", "system", "suffix", "template", "raw") if name in given}
    return Ask(**_common(given), **own, context=tuple(given.get("context", ())), has_images=bool(given.get("images")))


def parse_chat(body: bytes) -> Ask:
    """The body of POST /api/chat. Raises: EngineError 400."""
    given = decode(body, "ChatRequest", _CHAT)
    turns = given.get("messages", [])
    messages = tuple(_message(item) for item in turns)
    has_images = any(item.get("images") for item in turns)
    return Ask(**_common(given), messages=messages, has_tools=bool(given.get("tools")), has_images=has_images)


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise EngineError(400, f"json: cannot unmarshal {_GO_KIND[type(item)]} into Go value of type api.Alias")
    values = {name: item.get(name) or "" for name in ("role", "content")}
    for name, value in values.items():
        _check(value, "string", f"Alias.{name}")
    return Message(role=values["role"].lower(), content=values["content"])


def parse_named(body: bytes, struct: str) -> tuple[str, bool]:
    """The model's name and whether to stream, from a body of /api/show or /api/pull. Raises: EngineError 400."""
    given = decode(body, struct, _NAMED)
    return given.get("model") or given.get("name") or "", given.get("stream", True)
