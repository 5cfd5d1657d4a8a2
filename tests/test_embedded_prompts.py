"""A prompt that does not fit the context is cut, or refused, as Ollama does it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from appliance.embedded.bodies import Message
from appliance.embedded.errors import EngineError
from appliance.embedded.options import LoadOptions
from appliance.embedded.prompts import chatml, is_chatml, newest_that_fit, shortened

LOAD = LoadOptions(num_ctx=512, num_batch=64, num_thread=1)


def words(messages: Sequence[Message]) -> int:
    return sum(len(message.content.split()) for message in messages)


def test_a_prompt_of_one_less_than_the_context_is_left_alone() -> None:
    assert shortened(range(511), LOAD, num_keep=4, adds_bos=False) is None


def test_a_longer_one_keeps_its_beginning_and_end_and_frees_half() -> None:
    cut = shortened(range(909), LOAD, num_keep=4, adds_bos=False)
    assert cut is not None
    assert len(cut) == 258  # as the real Ollama 0.33 reports for this num_ctx
    assert cut[:4] == [0, 1, 2, 3]
    assert cut[4:] == list(range(655, 909))


def test_the_token_that_every_prompt_begins_with_is_kept_too() -> None:
    cut = shortened(range(909), LOAD, num_keep=4, adds_bos=True)
    assert cut is not None
    assert cut[:6] == [0, 1, 2, 3, 4, 909 - len(cut) + 5]


@pytest.mark.parametrize("num_keep", [-1, 0, 511, 10_000])
def test_whatever_is_to_be_kept_the_result_fits(num_keep: int) -> None:
    cut = shortened(range(2000), LOAD, num_keep, adds_bos=True)
    assert cut is not None
    assert 0 < len(cut) < LOAD.num_ctx


def test_without_context_shift_it_is_refused() -> None:
    load = LoadOptions(num_ctx=512, num_batch=64, num_thread=1, context_shift=False)
    with pytest.raises(EngineError, match="the prompt is longer than the context length") as refused:
        shortened(range(512), load, num_keep=4, adds_bos=False)
    assert refused.value.status == 400


def test_a_chat_loses_its_oldest_messages_but_no_system_message_and_not_the_last() -> None:
    system, old, new, last = (
        Message("system", "be brief"),
        Message("user", "old " * 9),
        Message("assistant", "ok"),
        Message("user", "hi"),
    )
    chat = [system, old, new, last]
    assert newest_that_fit(chat, 20, words) == chat
    assert newest_that_fit(chat, 5, words) == [system, new, last]
    assert newest_that_fit(chat, 1, words) == [system, last]


def test_chatml_ends_where_the_assistant_speaks() -> None:
    assert chatml([Message("user", "Hi")]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_with_tools_is_not_taken_for_plain_chatml() -> None:
    turn = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    assert is_chatml(turn)
    assert is_chatml(turn.replace("\n", "\\n"))
    assert not is_chatml("{% if tools %}" + turn)
    assert not is_chatml("")
