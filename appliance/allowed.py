"""Says in words what a type allows: `Annotated[int, Meta(ge=1, le=2048)]` is "a whole number from 1 to 2048".

Settings and request bodies are both declared as msgspec types; this is the one place that turns a declaration
into part of a sentence for a person. It knows nothing of either. A limit that has no words of its own, such
as a pattern, is given them: `Meta(pattern=…, extra={"allowed": "a duration such as 30m"})`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

from msgspec import inspect


def describe(type_: Any) -> str:
    """What a value of this type may be, as part of a sentence.

    type_: what msgspec can decode to: `int`, `Annotated[str, Meta(…)]`, `Literal["a", "b"]`, `list[int]` …, or what
      `msgspec.inspect` says of such a type.
    Returns: such as "a whole number from 1 to 2048", "up to 4 strings" or "one of local, open, off".
    """
    if isinstance(type_, inspect.Type):
        return _one(type_)
    return _choices(type_) or _one(inspect.type_info(type_))


def _choices(type_: Any) -> str | None:
    """A Literal in the order it was written; msgspec's own description of it is sorted."""
    if get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    if get_origin(type_) is not Literal:
        return None
    values = ", ".join(str(value) for value in get_args(type_))
    return f"one of {values}" if ", " in values else values


def _one(type_: inspect.Type) -> str:
    return _words(type_)[0]


def _many(type_: inspect.Type) -> str:
    return _words(type_)[1]


def _words(type_: inspect.Type) -> tuple[str, str]:
    """The singular with its article, and the plural without."""
    if isinstance(type_, inspect.Metadata):
        own = (type_.extra or {}).get("allowed")
        return (own, own) if own else _words(type_.type)
    describe_kind = _KINDS.get(type(type_))
    if describe_kind is None:
        name = type(type_).__name__.removesuffix("Type").lower()
        return f"a value of type {name}", f"values of type {name}"
    return describe_kind(type_)


def _integer(type_: inspect.IntType) -> tuple[str, str]:
    limits = _range(type_)
    return f"a whole number{limits}", f"whole numbers{limits}"


def _float(type_: inspect.FloatType) -> tuple[str, str]:
    limits = _range(type_)
    return f"a number{limits}", f"numbers{limits}"


def _string(type_: inspect.StrType) -> tuple[str, str]:
    limits = _count(type_.min_length, type_.max_length)
    if not limits:
        return "a string", "strings"
    end = "character" if limits.split()[-1] == "1" else "characters"
    return f"a string of {limits} {end}", f"strings of {limits} {end}"


def _list(type_: inspect.ListType) -> tuple[str, str]:
    limits = _count(type_.min_length, type_.max_length)
    items = _many(type_.item_type)
    if not limits:
        return f"a list of {items}", f"lists of {items}"
    return f"{limits} {items}", f"lists of {limits} {items}"


def _boolean(type_: inspect.BoolType) -> tuple[str, str]:
    return "true or false", "values of true or false"


def _null(type_: inspect.NoneType) -> tuple[str, str]:
    return "null", "nulls"


def _literal(type_: inspect.LiteralType) -> tuple[str, str]:
    values = ", ".join(str(value) for value in type_.values)
    return (f"one of {values}" if len(type_.values) > 1 else values), f"values of {values}"


def _union(type_: inspect.UnionType) -> tuple[str, str]:
    """Null comes last, however the declaration orders it."""
    kinds = sorted(type_.types, key=lambda kind: isinstance(kind, inspect.NoneType))
    return " or ".join(_one(kind) for kind in kinds), " or ".join(_many(kind) for kind in kinds)


def _mapping(type_: inspect.Type) -> tuple[str, str]:
    return "an object", "objects"


def _anything(type_: inspect.AnyType) -> tuple[str, str]:
    return "any value", "values"


_KINDS: dict[type[inspect.Type], Callable[[Any], tuple[str, str]]] = {
    inspect.AnyType: _anything,
    inspect.BoolType: _boolean,
    inspect.DictType: _mapping,
    inspect.FloatType: _float,
    inspect.IntType: _integer,
    inspect.ListType: _list,
    inspect.LiteralType: _literal,
    inspect.NoneType: _null,
    inspect.StrType: _string,
    inspect.StructType: _mapping,
    inspect.UnionType: _union,
}


def _range(type_: inspect.IntType | inspect.FloatType) -> str:
    """The limits of a number, with a leading space: " from 0 to 2", " above 0 and below 1", or nothing."""
    if type_.ge is not None and type_.le is not None:
        return f" from {_number(type_.ge)} to {_number(type_.le)}"
    low = _limit("above", type_.gt) or _limit("of at least", type_.ge)
    high = _limit("below", type_.lt) or _limit("of at most", type_.le)
    limits = " and ".join(limit for limit in (low, high) if limit)
    return f" {limits}" if limits else ""


def _limit(word: str, limit: float | None) -> str:
    return "" if limit is None else f"{word} {_number(limit)}"


def _number(value: float) -> str:
    """131072 and 0.05 as people write them; never 1.31072e+05 and never 2.0."""
    return str(int(value)) if value == int(value) else repr(value)


def _count(low: int | None, high: int | None) -> str:
    """How many: "1 to 4", "up to 4", "at least 1", "4", or nothing when any number will do."""
    if high is None:
        return f"at least {low}" if low else ""
    if low == high:
        return str(high)
    return f"{low} to {high}" if low else f"up to {high}"
