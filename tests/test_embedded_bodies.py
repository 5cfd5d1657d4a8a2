"""Request bodies of the embedded engine are read, and refused, as Ollama's decoder does."""

from __future__ import annotations

import json

import pytest

from appliance.embedded.bodies import Message, parse_chat, parse_generate, parse_named
from appliance.embedded.errors import EngineError


def refusal(body: bytes | str) -> str:
    with pytest.raises(EngineError) as refused:
        parse_generate(body.encode() if isinstance(body, str) else body)
    assert refused.value.status == 400
    return refused.value.message


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "missing request body"),
        (" \n", "missing request body"),
        ("{", "unexpected EOF"),
        ('{"model":', "unexpected EOF"),
        ("hello", "invalid character 'h' looking for beginning of value"),
        ('{"model": NaN}', "invalid character 'N' looking for beginning of value"),
        ("[]", "json: cannot unmarshal array into Go value of type api.GenerateRequest"),
        ("5", "json: cannot unmarshal number into Go value of type api.GenerateRequest"),
    ],
)
def test_what_is_no_json_object_is_refused(body: str, text: str) -> None:
    assert refusal(body) == text


@pytest.mark.parametrize(
    ("name", "value", "kind", "go_type"),
    [
        ("model", 5, "number", "string"),
        ("prompt", ["x"], "array", "string"),
        ("stream", "yes", "string", "bool"),
        ("options", [], "array", "map[string]interface {}"),
        ("raw", {}, "object", "bool"),
        ("context", "x", "string", "[]int"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(name: str, value: object, kind: str, go_type: str) -> None:
    expected = f"json: cannot unmarshal {kind} into Go struct field GenerateRequest.{name} of type {go_type}"
    assert refusal(json.dumps({name: value})) == expected


def test_null_and_unknown_fields_count_as_not_given() -> None:
    ask = parse_generate(b'{"model": "m", "prompt": null, "stream": null, "options": null, "what": 1}')
    assert (ask.prompt, ask.stream, ask.options) == ("", True, {})


def test_what_follows_the_object_is_ignored() -> None:
    assert parse_generate(b'{"model": "m"} trailing').model == "m"


def test_a_wrong_keep_alive_is_refused_with_gos_text() -> None:
    assert refusal('{"keep_alive": "soon"}') == 'time: invalid duration "soon"'
    assert refusal('{"keep_alive": true}') == "Unsupported type: 'bool'"


def test_a_wrong_think_is_refused() -> None:
    assert refusal('{"think": "hard"}').startswith('invalid think value: "hard"')
    assert refusal('{"think": 1}').startswith("think must be a boolean or string")


def test_half_a_surrogate_pair_and_broken_utf8_become_the_replacement_character() -> None:
    assert parse_generate(b'{"prompt": "a\\ud800b"}').prompt == "a\ufffdb"
    assert parse_generate(b'{"prompt": "a\xffb"}').prompt == "a\ufffdb"
    assert parse_generate('{"prompt": "🦊 \\ud83e\\udd8a"}'.encode()).prompt == "🦊 🦊"


def test_deep_nesting_is_refused_and_does_no_harm() -> None:
    assert refusal('{"options": ' + '{"a":' * 200_000) == "exceeded max depth"


def test_roles_are_taken_in_lower_case() -> None:
    ask = parse_chat(b'{"model": "m", "messages": [{"role": "User", "content": "Hi"}]}')
    assert ask.messages == (Message("user", "Hi"),)


def test_a_message_that_is_no_object_is_refused() -> None:
    with pytest.raises(EngineError, match="cannot unmarshal string into Go value"):
        parse_chat(b'{"model": "m", "messages": ["Hi"]}')


def test_nothing_to_say_with_keep_alive_zero_unloads() -> None:
    assert parse_generate(b'{"model": "m", "keep_alive": 0}').unloads
    assert not parse_generate(b'{"model": "m", "keep_alive": 0, "prompt": "x"}').unloads
    assert not parse_generate(b'{"model": "m"}').unloads


def test_show_and_pull_take_the_old_field_name_too() -> None:
    assert parse_named(b'{"name": "m"}', "ShowRequest") == ("m", True)
    assert parse_named(b'{"model": "m", "name": "n", "stream": false}', "PullRequest") == ("m", False)
