"""What a type allows, in words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from appliance.allowed import describe

Word = Annotated[str, Meta(min_length=1, max_length=64)]


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        (int, "a whole number"),
        (Annotated[int, Meta(ge=1, le=2048)], "a whole number from 1 to 2048"),
        (Annotated[int, Meta(ge=128, le=131072)], "a whole number from 128 to 131072"),
        (Annotated[int, Meta(ge=1)], "a whole number of at least 1"),
        (Annotated[float, Meta(ge=0.05, le=60)], "a number from 0.05 to 60"),
        (Annotated[float, Meta(gt=0, lt=1)], "a number above 0 and below 1"),
        (Annotated[float, Meta(le=2)], "a number of at most 2"),
        (str, "a string"),
        (Annotated[str, Meta(min_length=1, max_length=8192)], "a string of 1 to 8192 characters"),
        (Annotated[str, Meta(max_length=4096)], "a string of up to 4096 characters"),
        (Annotated[str, Meta(min_length=1)], "a string of at least 1 character"),
        (Annotated[str, Meta(min_length=8, max_length=8)], "a string of 8 characters"),
        (Annotated[list[str], Meta(max_length=4)], "up to 4 strings"),
        (Annotated[list[Word], Meta(min_length=1, max_length=4)], "1 to 4 strings of 1 to 64 characters"),
        (
            Annotated[list[Annotated[int, Meta(ge=128, le=9)]], Meta(max_length=4)],
            "up to 4 whole numbers from 128 to 9",
        ),
        (list[int], "a list of whole numbers"),
        (bool, "true or false"),
        (Literal["local", "open", "off"], "one of local, open, off"),
        (Annotated[Literal["b", "a"], Meta(description="x")], "one of b, a"),
        (str | None, "a string or null"),
        (Annotated[int, Meta(ge=1, le=5)] | msgspec.UnsetType, "a whole number from 1 to 5"),
        (dict[str, int], "an object"),
        (Any, "any value"),
        (Annotated[str, Meta(pattern="x", extra={"allowed": "a name"})], "a name"),
        (bytes, "a value of type bytes"),
    ],
)
def test_it_says_what_a_type_allows(type_, words):
    assert describe(type_) == words


def test_it_describes_the_fields_of_a_struct():
    class Body(msgspec.Struct):
        runs: Annotated[int, Meta(ge=1, le=5)] = 1

    (field,) = msgspec.inspect.type_info(Body).fields
    assert describe(field.type) == "a whole number from 1 to 5"


def test_a_body_is_an_object():
    assert describe(msgspec.Struct) == "an object"
