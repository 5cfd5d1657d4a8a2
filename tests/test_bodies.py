"""A body that is wrong is refused with the field's name, what was given and what is allowed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from appliance.bodies import GIVEN_CHARS, parse
from appliance.errors import InvalidValue, MalformedBody


class Order(msgspec.Struct, kw_only=True):
    text: Annotated[str, Meta(min_length=1, max_length=20)]
    count: Annotated[int, Meta(ge=1, le=9)] | None = None
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    tags: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=2)] = []
    sizes: list[int] = []
    is_urgent: bool = False


def refusal(raw: bytes) -> InvalidValue:
    with pytest.raises(InvalidValue) as caught:
        parse(raw, Order)
    return caught.value


def test_what_is_right_becomes_the_struct() -> None:
    body = '{"text": "häagen 🍨", "count": null, "share": 1, "tags": ["a", "b"], "is_urgent": true}'
    assert parse(body.encode(), Order) == Order(text="häagen 🍨", share=1, tags=["a", "b"], is_urgent=True)


def test_what_is_left_out_has_its_default() -> None:
    assert parse(b' {"text": "x"} \n', Order) == Order(text="x")


def test_of_two_fields_of_one_name_the_last_counts() -> None:
    assert parse(b'{"text": 5, "text": "x"}', Order).text == "x"


@pytest.mark.parametrize("nine", ["9", "9.0", "9e0", "0.9e1"])
def test_a_whole_number_may_be_written_in_any_way_that_json_has(nine: str) -> None:
    order = parse(b'{"text": "x", "count": %b, "sizes": [%b]}' % (nine.encode(), nine.encode()), Order)
    assert (order.count, order.sizes) == (9, [9])


@pytest.mark.parametrize(
    ("raw", "field", "detail"),
    [
        ("{}", "text", "text: is missing; expected a string of 1 to 20 characters."),
        ('{"text": ""}', "text", 'text: got ""; expected a string of 1 to 20 characters.'),
        ('{"text": null}', "text", "text: got null; expected a string of 1 to 20 characters."),
        ('{"text": "x", "count": 0}', "count", "count: got 0; expected a whole number from 1 to 9 or null."),
        ('{"text": "x", "count": true}', "count", "count: got true; expected a whole number from 1 to 9 or null."),
        ('{"text": "x", "count": 10.0}', "count", "count: got 10.0; expected a whole number from 1 to 9 or null."),
        ('{"text": "x", "count": 1.5}', "count", "count: got 1.5; expected a whole number from 1 to 9 or null."),
        ('{"text": "x", "count": "1"}', "count", 'count: got "1"; expected a whole number from 1 to 9 or null.'),
        ('{"text": "x", "share": 1e400}', "share", "share: got inf; expected a finite number."),
        ('{"text": "x", "share": NaN}', "share", "share: got nan; expected a finite number."),
        ('{"text": "x", "share": -Infinity}', "share", "share: got -inf; expected a finite number."),
        ('{"text": "x", "share": true}', "share", "share: got true; expected a number from 0 to 1."),
        ('{"text": "x", "tags": "a"}', "tags", 'tags: got "a"; expected up to 2 strings of at least 1 character.'),
        ('{"text": "x", "tags": [""]}', "tags", 'tags: got [""]; expected up to 2 strings of at least 1 character.'),
        ('{"text": "x", "is_urgent": 1}', "is_urgent", "is_urgent: got 1; expected true or false."),
        ('{"text": "a\\u0000b"}', "text", "text: got text with a NUL character; expected text without NUL."),
        ('{"text":"x","tags":["\\u0000"]}', "tags", "tags: got text with a NUL character; expected text without NUL."),
        ('{"text": "\\ud83d"}', "text", "text: got text with a lone surrogate; expected valid Unicode."),
        ('{"": 1}', '""', '"": no such field; known fields: text, count, share, tags, sizes, is_urgent.'),
        ('{"a\\ud800": NaN}', "a?", "a?: got nan; expected a finite number."),
        ('{"text": "x", "texd": 1}', "texd", "texd: no such field; did you mean text?"),
        ('[{"text": "x"}]', "body", 'body: expected a JSON object, got [{"text": "x"}].'),
        ("null", "body", "body: expected a JSON object, got null."),
    ],
)  # fmt: skip
def test_it_names_the_field_and_what_is_allowed(raw: str, field: str, detail: str) -> None:
    error = refusal(raw.encode())
    assert (error.extra["field"], error.detail) == (field, detail)


def test_a_name_like_none_of_ours_is_answered_with_all_of_them() -> None:
    error = refusal(b'{"zzz": 1}')
    assert error.detail == "zzz: no such field; known fields: text, count, share, tags, sizes, is_urgent."


def test_long_text_is_told_by_its_length() -> None:
    assert "got 2000 characters" in refusal(json.dumps({"text": "x" * 2000}).encode()).detail


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"text": "x"',
        b'{"text": "x"} {}',
        b'\xef\xbb\xbf{"text": "x"}',
        b'{"text": "\xff"}',
        '{"text": "x"}'.encode("utf-16"),
        b"text=x",
        b"{'text': 'x'}",
        b'{"text": "x",}',
        b'{"text": "x\n"}',
        b'{"text": "x", "count": 01}',
        b'{"text": "x", "count": 0x1}',
        b'{"\\ud800": "x"}',
        b"[" * 100_000,
        b'{"text": ' * 20_000,
    ],
)
def test_what_is_no_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedBody):
        parse(raw, Order)


@pytest.mark.parametrize("digits", [19, 20, 400, 5000])
def test_a_huge_number_is_refused(digits: int) -> None:
    with pytest.raises((InvalidValue, MalformedBody)):
        parse(b'{"text": "x", "count": %b}' % (b"9" * digits), Order)


@pytest.mark.parametrize("depth", [*range(1, 12), *range(500, 1100, 7), 5000])
@pytest.mark.parametrize("template", ["%s", '{"text": %s}', '{"%s": 1}', '{"text": "x", "tags": [%s]}'])
def test_depth_is_refused_and_breaks_nothing(depth: int, template: str) -> None:
    with pytest.raises((InvalidValue, MalformedBody)):
        parse((template % ("[" * depth + "]" * depth)).encode(), Order)


NAMES = st.sampled_from(["text", "count", "share", "tags", "is_urgent", "texd", "\ud800", "\0", "x" * 500]) | st.text()
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=200)
    | st.sampled_from(["x", "a\0", "\udfff", 10**30, 0.25]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@given(VALUES | st.dictionaries(NAMES, VALUES, max_size=5))
def test_every_json_is_taken_or_refused_in_words_that_can_be_sent(value: Any) -> None:
    error = None
    try:
        order = parse(json.dumps(value).encode(), Order)
        assert msgspec.json.encode(order)
    except (InvalidValue, MalformedBody) as refused:
        error = refused
    if error is not None:
        told = json.dumps(error.as_dict(), ensure_ascii=False).encode()  # as Falcon sends it
        assert len(told) < 12 * GIVEN_CHARS + 500
        assert isinstance(error, MalformedBody) or error.extra["field"]


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises((InvalidValue, MalformedBody)):
        parse(raw, Order)
