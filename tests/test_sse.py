"""Any text becomes one event that any reader of server-sent events gives back whole."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from appliance import sse

TEXT = st.text() | st.sampled_from(["\r\n\n", "\u2028", "data: x\n\n", ": ping\n\n", "👩‍🚀", "\0", "x" * 10_000])


def fields_of(raw: bytes) -> list[tuple[str, str]]:
    """The lines of exactly one event, as the HTML standard splits them: at CR LF, LF and CR."""
    block, end, rest = raw.decode().partition("\n\n")
    assert (end, rest) == ("\n\n", "")
    lines = block.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


@given(TEXT)
def test_a_token_is_one_event_whatever_its_text(text: str) -> None:
    (event, name), (field, data) = fields_of(sse.token(text))
    assert (event, name, field) == ("event", "token", "data")
    assert json.loads(data) == {"token": text, "done": False}


@given(st.dictionaries(TEXT, TEXT | st.integers(-(2**60), 2**60) | st.none(), max_size=4))
def test_an_event_is_one_whatever_its_data(data: dict[str, object]) -> None:
    fields = fields_of(sse.event("error", data))
    assert fields[0] == ("event", "error")
    assert json.loads(fields[1][1]) == data


def test_a_ping_is_a_comment_that_readers_pass_over() -> None:
    assert sse.PING == b": ping\n\n"


def test_the_bytes_of_a_token_are_those_of_the_contract() -> None:
    assert sse.token(" fall") == b'event: token\ndata: {"token": " fall", "done": false}\n\n'
