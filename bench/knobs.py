"""The knobs of a node: what may be tuned, and what each is called in a profile, in an inventory and in the schema.

One row says everything about a knob. From the rows come `inventory/tuned_profile.schema.json`, against which a profile
is checked when it is written and before it is deployed, and `inventory/group_vars/all/tuned.yml`, which hands a
profile to the roles. `python -m bench.knobs` writes both, `--check` only compares. What is also a setting of the
appliance takes its limits, default and meaning from there. This knows nothing of measuring or searching.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from appliance.config import SETTINGS, Setting

FORMAT = 1
PROJECT = Path(__file__).parent.parent
INVENTORY = PROJECT / "inventory"
SCHEMA = INVENTORY / "tuned_profile.schema.json"
MAPPING = INVENTORY / "group_vars" / "all" / "tuned.yml"
# Narrower than the setting: a machine has no need of 1h30m, and every duration that fits here is one the setting takes.
DURATION = "^(-1|[1-9][0-9]{0,4}[sm]|[1-9][0-9]{0,2}h)$"
DURATION_ALLOWED = 'a duration such as "30m": up to 99999s, 99999m or 999h, or "-1" for ever; in quotes'

Restart = Literal["nothing", "appliance", "ollama"]


@dataclass(frozen=True)
class Knob:
    """One row of the table.

    name: in a profile's env, and in the process that reads it.
    field: in Python.
    role_variable: in an inventory.
    restart: what must restart before another value can be measured: nothing, when a request to /benchmark carries it;
      "ollama" means the appliance as well.
    values: the JSON Schema of its values.
    allowed: the same in words.
    """

    name: str
    role_variable: str
    restart: Restart
    values: dict[str, Any]
    allowed: str
    default: int | str
    unit: str
    meaning: str

    @property
    def field(self) -> str:
        return self.name.lower()

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of one value; "allowed" is an annotation, for messages to people."""
        unit = f" Unit: {self.unit}." if self.unit else ""
        return {"description": self.meaning + unit, **self.values, "allowed": self.allowed, "default": self.default}


def _setting(name: str, restart: Restart) -> Knob:
    row = SETTINGS[name]
    return Knob(
        name=name,
        role_variable=f"appliance_{row.field}",
        restart=restart,
        values=_limits(row),
        allowed=row.allowed,
        default=row.default,
        unit=row.unit,
        meaning=row.meaning,
    )


def _limits(row: Setting) -> dict[str, Any]:
    limits = msgspec.json.schema(row.type)
    return {key: limits[key] for key in ("type", "minimum", "maximum")}


def _keep_alive() -> Knob:
    row = SETTINGS["OLLAMA_KEEP_ALIVE"]
    return Knob(
        name=row.name,
        role_variable="appliance_ollama_keep_alive",
        restart="appliance",
        values={"type": "string", "pattern": DURATION},
        allowed=DURATION_ALLOWED,
        default=row.default,
        unit=row.unit,
        meaning=row.meaning,
    )


def _engine(name: str, values: list[str], default: str, meaning: str) -> Knob:
    return Knob(
        name=name,
        role_variable=name.lower(),
        restart="ollama",
        values={"type": "string", "enum": values},
        allowed=f"one of {', '.join(values)}; in quotes, since YAML takes a bare on or off for true or false",
        default=default,
        unit="",
        meaning=meaning,
    )


_ROWS = (
    _setting("N_CTX", "nothing"),
    _setting("N_THREADS", "nothing"),
    _setting("N_BATCH", "nothing"),
    _setting("MAX_TOKENS", "nothing"),
    _keep_alive(),
    _setting("MAX_CONCURRENT_REQUESTS", "ollama"),
    _engine(
        "OLLAMA_FLASH_ATTENTION",
        ["auto", "on", "off"],
        "auto",
        "Flash attention of the engine; a quantized KV cache needs it.",
    ),
    _engine("OLLAMA_KV_CACHE_TYPE", ["f16", "q8_0", "q4_0"], "f16", "The type of the key-value cache's numbers."),
)
KNOBS = {knob.name: knob for knob in _ROWS}


def profile_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `tuned_profile`, the machine's one variable in an inventory."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tuned_profile",
        "description": "What bench measured and chose for one node: inventory/host_vars/<node>/tuned.yml.",
        "type": "object",
        "additionalProperties": False,
        "required": ["format", "env", "measured", "provenance"],
        "properties": {
            "format": {"description": "The format of this profile.", "const": FORMAT, "allowed": str(FORMAT)},
            "env": {
                "description": "The settings that were chosen; what is not named keeps its default.",
                "type": "object",
                "additionalProperties": False,
                "minProperties": 1,
                "properties": {name: knob.schema() for name, knob in KNOBS.items()},
                "allowed": f"any of {', '.join(KNOBS)}, and at least one",
            },
            "measured": {
                "description": "What was measured with these settings, by the name of the metric.",
                "type": "object",
                "additionalProperties": _METRIC,
                "allowed": "metrics, each with median, ci95 and n",
            },
            "provenance": _PROVENANCE,
        },
        "allowed": "format, env, measured and provenance, and nothing else",
    }


def _text(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "type": ["string", "null"], "allowed": "a text in quotes, or null"}


_METRIC = {
    "type": "object",
    "required": ["median", "ci95", "n"],
    "properties": {
        "median": {"type": "number", "allowed": "a number"},
        "ci95": {
            "description": "The 95 % confidence interval of the median.",
            "type": "array",
            "items": {"type": "number", "allowed": "a number"},
            "minItems": 2,
            "maxItems": 2,
            "allowed": "two numbers, the low end and the high",
        },
        "n": {"description": "How many samples.", "type": "integer", "minimum": 1, "allowed": "a whole number above 0"},
    },
    "allowed": "median, ci95 and n, and what else describes the metric",
}
_PROVENANCE = {
    "description": "Which run chose the settings, and on what; a profile is stale when these have changed.",
    "type": "object",
    "required": ["run", "at"],
    "properties": {
        "run": {"description": "The run's name.", "type": "string", "minLength": 1, "allowed": "a run's name"},
        "at": {
            "description": "When, UTC.",
            "type": "string",
            "minLength": 1,
            "allowed": 'a time in quotes, such as "2026-01-31T12:00:00Z"',
        },
        "model": _text("The model's name."),
        "model_digest": _text("The sha256 of the model's manifest."),
        "ollama": _text("The engine's version."),
        "appliance": _text("The appliance's version."),
        "board": _text("The board's name, as it says itself."),
        "throttled": _text("What `vcgencmd get_throttled` said."),
    },
    "allowed": "run and at, and what else says where the profile comes from",
}


def mapping() -> str:
    """The group variables that hand a profile to the roles; weaker than every variable that people set elsewhere."""
    lines = [
        f'{knob.role_variable}: "{{{{ fleet__tuned.{knob.name} | default({knob.default!r}) }}}}"' for knob in _ROWS
    ]
    return _MAPPING_HEAD + "\n".join(lines) + "\n"


_MAPPING_HEAD = """\
# Generated by `make docs` from bench/knobs.py. Set nothing here.
# A node's tuned profile (host_vars/<node>/tuned.yml) takes the place of a role's default. What you set for the group
# `nodes`, for any other group or for a host wins over both.
fleet__tuned: "{{ (tuned_profile | default({}, true)).env | default({}, true) }}"
"""


def written() -> dict[Path, str]:
    """Each generated file and what belongs into it."""
    schema = json.dumps(profile_schema(), indent=2, ensure_ascii=False) + "\n"
    return {SCHEMA: schema, MAPPING: mapping()}


def main(arguments: list[str]) -> int:
    stale = {path: text for path, text in written().items() if not path.is_file() or path.read_text() != text}
    if "--check" in arguments:
        for path in stale:
            print(f"{path}: not what bench/knobs.py says; run: make docs", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
