"""Prompts by seed: the same bytes for the same seed, none that begins like another, of the lengths asked for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bench.running.trace import LONGEST_WORDS, NUMBERS, PROMPT_LIMIT_CHARS, WORDS, Calibration, Trace, arrivals

TRACE = Trace(7, (32, 128), Calibration(20, 1.0))


def texts(trace: Trace, count: int) -> list[str]:
    return [
        trace.prompt(stage, part, n).text for stage in (0, 1) for part in ("warm_up", "measured") for n in range(count)
    ]


def test_a_seed_always_gives_the_same_bytes() -> None:
    assert TRACE.prompt(0, "measured", 1).text == (
        "lock half july last near cord life gray mind last menu fold. Write this list of words again and again, "
        "and never stop:"
    )
    assert TRACE.digest() == Trace(7, (32, 128), Calibration(20, 1.0)).digest()


def test_another_seed_gives_another_trace() -> None:
    other = Trace(8, (32, 128), Calibration(20, 1.0))
    assert other.digest() != TRACE.digest()
    assert not set(texts(other, 50)) & set(texts(TRACE, 50))


def test_no_two_prompts_begin_with_the_same_four_words() -> None:
    beginnings = [tuple(text.split()[:4]) for text in texts(TRACE, 500)]
    assert len(set(beginnings)) == len(beginnings) == 2000


def test_prompts_near_each_other_differ_in_their_first_word() -> None:
    first_words = [TRACE.prompt(0, "measured", number).text.split()[0] for number in range(256)]
    assert len(set(first_words)) == 256


def test_each_block_of_prompts_has_each_length_once() -> None:
    wanted = [TRACE.prompt(3, "measured", number).wanted_tokens for number in range(20)]
    assert all(sorted(wanted[i : i + 2]) == [32, 128] for i in range(0, 20, 2))
    assert wanted[:2] != wanted[2:4] or wanted[2:4] != wanted[4:6] or wanted[4:6] != wanted[6:8]


def test_a_calibrated_length_has_the_tokens_that_were_asked_for() -> None:
    calibration = Calibration.of(short=(16, 42), long=(80, 122))
    assert (calibration.overhead_tokens, calibration.tokens_per_word) == (22.0, 1.25)
    assert calibration.tokens_of(calibration.words_for(128)) in (127, 128)


def test_a_prompt_that_is_shorter_than_its_beginning_has_its_beginning() -> None:
    assert Calibration(40, 1.0).words_for(16) == 4


def test_the_longest_prompt_fits_a_request() -> None:
    text = TRACE.text(0, "calibration", 2, LONGEST_WORDS)
    assert len(text) <= PROMPT_LIMIT_CHARS < len(text) + 5


def test_a_number_beyond_the_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="no such prompt"):
        TRACE.prompt(0, "measured", NUMBERS)


def test_the_words_spell_a_byte_each() -> None:
    assert len(set(WORDS)) == 256
    assert {len(word) for word in WORDS} == {4}


def test_constant_arrivals_keep_their_gap() -> None:
    assert arrivals("constant", 2.0, 4, "1") == [0.0, 0.5, 1.0, 1.5]


def test_poisson_arrivals_have_their_mean_gap_and_its_spread() -> None:
    times = arrivals("poisson", 4.0, 20_001, "1")
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.03)
    assert sum(gap > 0.25 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.015)  # 1 / e of them
    assert arrivals("poisson", 4.0, 10, "1") == times[:10] != arrivals("poisson", 4.0, 10, "2")
