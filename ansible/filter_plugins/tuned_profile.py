"""Checks a node's tuned profile on the controller, before any node is asked anything, and tells when it is stale.

What a profile may hold is inventory/tuned_profile.schema.json's to say, which bench writes; this puts what a profile
breaks into sentences that name the file, the field, the value and what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

try:
    from ansible.errors import AnsibleFilterError
except ImportError:  # bench checks with this what it writes, and may live in another environment than Ansible
    AnsibleFilterError = ValueError  # type: ignore[assignment,misc]
try:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend
except ImportError:  # said when a profile is to be checked, not to whoever has none
    Draft202012Validator = None  # type: ignore[assignment,misc]

SCHEMA = Path(__file__).parents[2] / "inventory" / "tuned_profile.schema.json"
VALUE_SHOWN = 60
STALE_WITH = {
    "model": "the model",
    "model_digest": "the model's digest",
    "ollama": "Ollama's version",
    "board": "the board",
}


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return schema


def tuned_profile_problems(profile: Any, file: str) -> list[str]:
    """What is wrong with a profile, a sentence each; nothing for one that is right, or that is not there.

    profile: the variable tuned_profile of a node, or None.
    file: where it came from, for the sentences.
    """
    if profile is None:
        return []
    if Draft202012Validator is None:
        raise AnsibleFilterError(
            f"{file} cannot be checked, since the Python of ansible-playbook lacks jsonschema: run `make fleet`, or "
            "install it beside ansible."
        )
    # To JSON Schema 1024.0 is a whole number; as text it is none.
    whole = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    validator = extend(Draft202012Validator, type_checker=whole)(_schema())
    errors = sorted(validator.iter_errors(profile), key=lambda error: error.json_path)
    found = [sentence for error in errors for sentence in _sentences(error)] or _contradictions(profile)
    return [f"{file}: {sentence}" for sentence in dict.fromkeys(found)]


def _sentences(error: ValidationError) -> Iterator[str]:
    field = ".".join(["tuned_profile", *(str(part) for part in error.absolute_path)])
    schema: Any = error.schema
    allowed = schema["allowed"]
    if error.validator == "additionalProperties":
        for name in cast(dict[str, Any], error.instance):
            if name not in schema["properties"]:
                yield f"{field} has {name}, which is unknown; allowed is {allowed}."
        return
    if error.validator == "required":
        yield f"{field} lacks {error.message.split(chr(39))[1]}; it needs {allowed}."
        return
    yield f"{field} is {_shown(error.instance)}; allowed is {allowed}."


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= VALUE_SHOWN else f"{text[:VALUE_SHOWN]}…"


def _contradictions(profile: Mapping[str, Any]) -> Iterator[str]:
    """What no single value shows, with the defaults for what the profile does not name."""
    knobs = _schema()["properties"]["env"]["properties"]
    env = {**{name: knob["default"] for name, knob in knobs.items()}, **profile["env"]}
    if env["MAX_TOKENS"] >= env["N_CTX"]:
        yield (
            f"tuned_profile.env.MAX_TOKENS is {env['MAX_TOKENS']} and N_CTX is {env['N_CTX']}; an answer must be "
            "shorter than the context that holds it, so MAX_TOKENS must be less than N_CTX."
        )
    if env["OLLAMA_KV_CACHE_TYPE"] != "f16" and env["OLLAMA_FLASH_ATTENTION"] == "off":
        yield (
            f"tuned_profile.env.OLLAMA_KV_CACHE_TYPE is {env['OLLAMA_KV_CACHE_TYPE']} with OLLAMA_FLASH_ATTENTION off; "
            'a quantized KV cache needs flash attention: "auto" or "on".'
        )


def unreadable_profiles(nodes: Iterable[str], inventories: Iterable[str]) -> list[str]:
    """Which tuned.yml are not YAML at all, a sentence each. Ansible stops at one too, but does not name the file.

    nodes: their names. inventories: the files or folders that ansible was given; host_vars/ lies beside or in them.
    """
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in map(Path, inventories))
    files = [folder / "host_vars" / node / "tuned.yml" for folder in folders for node in nodes]
    return [sentence for file in files if file.is_file() for sentence in _unreadable(file)]


def _unreadable(file: Path) -> Iterator[str]:
    try:
        yaml.safe_load(file.read_bytes())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or "unreadable"
        yield f"{file}{line}: it is not YAML ({why}); bench writes it, so delete it, or take an earlier one from git."


def stale_reasons(provenance: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Why what was measured is no longer true of a node, a sentence each; none while it still is.

    provenance: a profile's, or None where there is no profile. now: the node's, by the same names; what either does
    not know is not held against the profile.
    """
    then = provenance or {}
    return [
        f"{what} was {then[name]} when it was measured, and is {now[name]} now"
        for name, what in STALE_WITH.items()
        if then.get(name) is not None and now.get(name) is not None and then[name] != now[name]
    ]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "stale_reasons": stale_reasons,
            "tuned_profile_problems": tuned_profile_problems,
            "unreadable_profiles": unreadable_profiles,
        }
