"""Option and duration values, judged as Ollama judges them. Pure: knows no HTTP and no engine.

Ollama (api/types.go, Options.FromMap) takes any JSON number for an integer and cuts the fraction, ignores
unknown names and null, and refuses a wrong type with a 500. Defaults are those of Ollama 0.32.10 and later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from appliance.embedded.errors import EngineError

FOREVER_S = (2**63 - 1) / 1e9  # Go's largest duration, 292 years: what a negative keep_alive means
MIN_NUM_CTX = 4
CONTEXTS_PER_GENERATION = 10  # num_predict -1 is not endless in Ollama: this many times num_ctx

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)", re.ASCII)


@dataclass(frozen=True)
class LoadOptions:
    """The options that are fixed when a model is loaded; a request with others reloads it."""

    num_ctx: int
    num_batch: int
    num_thread: int
    context_shift: bool = True


@dataclass(frozen=True)
class RunOptions:
    """The options of one generation."""

    num_predict: int = -1
    num_keep: int = 4
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1
    stop: list[str] = field(default_factory=list)

    def token_limit(self, num_ctx: int) -> int:
        """How many tokens to make at most: num_predict, or ten contexts when it is more, zero or negative."""
        limit = CONTEXTS_PER_GENERATION * num_ctx
        return limit if self.num_predict <= 0 else min(self.num_predict, limit)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (inf, -inf):
        raise EngineError(500, f'option "{name}" must be of type integer')
    return max(-(2**63), min(int(value), 2**63 - 1))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EngineError(500, f'option "{name}" must be of type float32')
    return float(value)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise EngineError(500, f'option "{name}" must be of type boolean')
    return value


def _strings(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise EngineError(500, f'option "{name}" must be of type array')
    if not all(isinstance(item, str) for item in value):
        raise EngineError(500, f'option "{name}" must be of an array of strings')
    return value


_LOAD: dict[str, Callable[[str, Any], Any]] = dict.fromkeys(("num_ctx", "num_batch", "num_thread"), _integer)
_RUN: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("num_predict", "num_keep", "top_k", "repeat_last_n", "seed"), _integer),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p"), _number),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), _number),
    "stop": _strings,
}
# Checked like Ollama's, without effect here: there is no GPU and no draft model.
_IDLE: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("num_gpu", "main_gpu", "draft_num_predict"), _integer),
    "use_mmap": _boolean,
}


def parse_options(
    given: Mapping[str, Any], defaults: LoadOptions, trained_ctx: int, stop: Sequence[str] = ()
) -> tuple[LoadOptions, RunOptions]:
    """Read a request's `options`.

    given: the JSON object. defaults: load options where it is silent. trained_ctx: the tokens that the model was
    made for. stop: the model's own stop strings.
    Raises: EngineError 500 with Ollama's text when a value has the wrong type.
    """
    checks = _LOAD | _RUN | _IDLE
    values = {name: checks[name](name, v) for name, v in given.items() if name in checks and v is not None}
    num_ctx = max(MIN_NUM_CTX, min(values.get("num_ctx", defaults.num_ctx), trained_ctx))
    load = LoadOptions(
        num_ctx=num_ctx,
        num_batch=min(_positive(values.get("num_batch")) or defaults.num_batch, num_ctx),
        num_thread=_positive(values.get("num_thread")) or defaults.num_thread,
        context_shift=defaults.context_shift,
    )
    run = {name: value for name, value in values.items() if name in _RUN}
    return load, RunOptions(**{"stop": list(stop), **run})


def _positive(value: int | None) -> int:
    """The value, or 0 where Ollama takes it for "choose yourself"."""
    return max(value or 0, 0)


def parse_duration(text: str) -> float:
    """Go's duration grammar ("1h30m", "-1s", "1.5h", "0"), in seconds.

    Raises: ValueError with Go's text.
    """
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return 0.0
    total_s, rest = 0.0, unsigned
    while rest:
        quantity = _QUANTITY.match(rest)
        if quantity is None:
            break
        number, unit = quantity.groups()
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _UNIT_S:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        total_s += float(number) * _UNIT_S[unit]
        rest = rest[quantity.end() :]
    if rest or not unsigned or total_s > FOREVER_S:
        raise ValueError(f'time: invalid duration "{text}"')
    return -total_s if text[0] == "-" else total_s


def parse_keep_alive(value: Any) -> float:
    """`keep_alive` of a request: seconds as a number, or a Go duration; negative means for ever.

    Returns: seconds. Raises: ValueError with Ollama's text.
    """
    if isinstance(value, str):
        seconds = parse_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        names = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}
        raise ValueError(f"Unsupported type: '{names.get(type(value), '%!s(<nil>)')}'")
    return FOREVER_S if seconds < 0 else min(seconds, FOREVER_S)
