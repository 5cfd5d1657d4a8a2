"""Reads a request's JSON body into a struct, and says which field is wrong, what was given and what is allowed."""

from __future__ import annotations

import json
import math
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

import falcon
import gevent
import msgspec
from gunicorn.http.errors import ParseException

from appliance.allowed import describe
from appliance.errors import BodyTimeout, BodyTooLarge, InvalidValue, MalformedBody, UnsupportedMediaType

BODY_LIMIT_BYTES = 256 * 1024  # 8192 + 4096 characters, each at most 12 bytes as an escaped surrogate pair, and more
GIVEN_CHARS = 80

T = TypeVar("T", bound=msgspec.Struct)


def read_body(req: falcon.Request, kind: type[T], timeout_s: float) -> T:
    """The request's body as a `kind`.

    Raises: UnsupportedMediaType, BodyTooLarge, BodyTimeout, MalformedBody, InvalidValue.
    """
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"Content-Type: expected application/json, got {_given(req.content_type) if req.content_type else 'none'}."
        )
    return parse(_read(req, timeout_s), kind)


def parse(raw: bytes, kind: type[T]) -> T:
    """Decode and check.

    Raises: MalformedBody, InvalidValue (`field`, `given`, `allowed`).
    """
    fields = _decode(raw)
    if not isinstance(fields, dict):
        raise InvalidValue(
            f"body: expected a JSON object, got {_given(fields)}.", field="body", allowed="a JSON object"
        )
    known = _fields_of(kind)
    for name in fields:
        if name not in known:
            raise _unknown(name, list(known))
    for name, field in known.items():
        if name not in fields:
            if field.required:
                raise _wrong(name, "nothing", describe(field.type), "is missing")
            continue
        given, fields[name] = fields[name], _whole(fields[name])
        try:
            msgspec.convert(fields[name], field.type)
        except msgspec.ValidationError as error:
            raise _wrong(name, _given(given), describe(field.type)) from error
        _refuse_unspeakable(name, fields[name])
    return msgspec.convert(fields, kind)


@cache
def _fields_of(kind: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def _read(req: falcon.Request, timeout_s: float) -> bytes:
    length = req.content_length
    if length is not None and length > BODY_LIMIT_BYTES:
        raise _too_large()
    with gevent.Timeout(timeout_s, BodyTimeout(f"The body did not arrive within {timeout_s:g} s.")):
        try:
            raw: bytes = req.env["wsgi.input"].read(BODY_LIMIT_BYTES + 1)
        except (OSError, ParseException) as error:
            raise MalformedBody(f"The body broke off: {error}") from error
    if len(raw) > BODY_LIMIT_BYTES:
        raise _too_large()
    if length is not None and len(raw) < length:
        raise MalformedBody(f"The body broke off: {len(raw)} bytes of {length} came.")
    return raw


def _decode(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except RecursionError:
        raise MalformedBody("The body's JSON is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        malformed = MalformedBody(f"The body is not JSON: {error}")
    # Python's own decoder takes what JSON does not know (NaN, lone surrogates): only to name the field that holds it.
    try:
        lenient = json.loads(raw)
    except (ValueError, RecursionError):
        raise malformed from None
    for name, value in lenient.items() if isinstance(lenient, dict) else ():
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(name, str(value), "a finite number")
        _refuse_unspeakable(name, value)
    raise malformed


def _whole(value: Any) -> Any:
    """JSON has one kind of number and its schemas call 48.0 an integer; msgspec would not."""
    if isinstance(value, list):
        return [_whole(item) for item in value] if all(isinstance(item, int | float) for item in value) else value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _refuse_unspeakable(name: str, value: Any) -> None:
    """NUL ends a string inside the engine, and a lone surrogate has no UTF-8."""
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        if "\0" in text:
            raise _wrong(name, "text with a NUL character", "text without NUL")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise _wrong(name, "text with a lone surrogate", "valid Unicode")


def _wrong(name: str, given: str, allowed: str, verdict: str = "") -> InvalidValue:
    name = _shown(name)
    detail = f"{name}: {verdict or f'got {given}'}; expected {allowed}."
    return InvalidValue(detail, field=name, given=given, allowed=allowed)


def _unknown(name: str, known: list[str]) -> InvalidValue:
    nearest = get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known fields: {', '.join(known)}."
    return InvalidValue(f"{_shown(name)}: no such field; {hint}", field=_shown(name), allowed=known)


def _shown(name: str) -> str:
    """A field's name as sent, for an answer: it may be of any length, and hold a lone surrogate."""
    return name[:GIVEN_CHARS].encode(errors="replace").decode() or '""'


def _given(value: Any) -> str:
    """What was sent, short enough to repeat; long text by its length alone."""
    if isinstance(value, str) and len(value) > GIVEN_CHARS:
        return f"{len(value)} characters"
    try:
        text = json.dumps(value, ensure_ascii=True)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= GIVEN_CHARS else text[:GIVEN_CHARS] + "…"


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {BODY_LIMIT_BYTES // 1024} KiB.", limit_bytes=BODY_LIMIT_BYTES)
