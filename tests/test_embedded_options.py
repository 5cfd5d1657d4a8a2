"""Options and durations of the embedded engine are judged as Ollama judges them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.embedded.errors import EngineError
from appliance.embedded.options import (
    FOREVER_S,
    LoadOptions,
    RunOptions,
    parse_duration,
    parse_keep_alive,
    parse_options,
)

DEFAULTS = LoadOptions(num_ctx=1024, num_batch=64, num_thread=1)


def load_of(**given: object) -> LoadOptions:
    return parse_options(given, DEFAULTS, trained_ctx=8192)[0]


def run_of(**given: object) -> RunOptions:
    return parse_options(given, DEFAULTS, trained_ctx=8192)[1]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_ctx", "512", 'option "num_ctx" must be of type integer'),
        ("seed", True, 'option "seed" must be of type integer'),
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("top_p", True, 'option "top_p" must be of type float32'),
        ("stop", "x", 'option "stop" must be of type array'),
        ("stop", [1], 'option "stop" must be of an array of strings'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("num_gpu", "all", 'option "num_gpu" must be of type integer'),
    ],
)
def test_a_wrong_type_is_a_500_with_ollamas_text(name: str, value: object, text: str) -> None:
    with pytest.raises(EngineError) as refused:
        run_of(**{name: value})
    assert (refused.value.status, refused.value.message) == (500, text)


def test_a_fraction_of_an_integer_is_cut_off() -> None:
    assert run_of(num_predict=1.7).num_predict == 1


def test_unknown_names_and_null_are_ignored() -> None:
    assert run_of(nonsense=1, mirostat=2, temperature=None) == RunOptions()


def test_the_defaults_are_those_of_ollama_since_0_32_10() -> None:
    run = run_of()
    assert (run.temperature, run.top_k, run.top_p, run.repeat_penalty, run.num_keep) == (0.8, 40, 0.9, 1.0, 4)


def test_num_ctx_is_held_between_4_and_what_the_model_was_trained_for() -> None:
    assert [load_of(num_ctx=n).num_ctx for n in (-5, 0, 640, 10**6)] == [4, 4, 640, 8192]


def test_zero_and_negative_threads_and_batches_mean_the_engines_own_choice() -> None:
    assert load_of(num_thread=0, num_batch=-1) == DEFAULTS


def test_the_models_stop_strings_hold_until_the_request_has_its_own() -> None:
    assert parse_options({}, DEFAULTS, 8192, stop=("<|im_end|>",))[1].stop == ["<|im_end|>"]
    assert parse_options({"stop": ["x"]}, DEFAULTS, 8192, stop=("<|im_end|>",))[1].stop == ["x"]


@pytest.mark.parametrize(("num_predict", "limit"), [(-1, 5120), (-2, 5120), (0, 5120), (7, 7), (10**9, 5120)])
def test_an_open_ended_generation_ends_after_ten_contexts(num_predict: int, limit: int) -> None:
    assert RunOptions(num_predict=num_predict).token_limit(num_ctx=512) == limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("10m", 600), ("1h30m", 5400), ("-1s", -1), ("1.5h", 5400), (".5s", 0.5), ("+2ms", 0.002)],
)
def test_it_reads_gos_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'time: invalid duration ""'),
        ("soon", 'time: invalid duration "soon"'),
        ("5", 'time: missing unit in duration "5"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("-", 'time: invalid duration "-"'),
        ("9999999h", 'time: invalid duration "9999999h"'),
    ],
)
def test_a_wrong_duration_is_refused_with_gos_text(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}$"):
        parse_duration(text)


@given(st.text() | st.from_regex(r"[-+]?(\d*\.?\d*(ns|us|ms|s|m|h)){1,3}", fullmatch=True))
def test_any_text_is_a_duration_or_a_clear_refusal(text: str) -> None:
    with suppress(ValueError):
        assert abs(parse_duration(text)) <= FOREVER_S


@pytest.mark.parametrize(("value", "seconds"), [(5, 5), (0, 0), (-1, FOREVER_S), ("-1s", FOREVER_S), (1.5, 1.5)])
def test_keep_alive_takes_seconds_or_a_duration_and_negative_is_for_ever(value: object, seconds: float) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(("value", "kind"), [(True, "bool"), ([], "[]interface {}"), ({}, "map[string]interface {}")])
def test_keep_alive_of_another_type_is_refused(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match="Unsupported type") as refused:
        parse_keep_alive(value)
    assert kind in str(refused.value)
