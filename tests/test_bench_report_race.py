"""A report of a tune: every setting that was visited beside the winner, with its interval, and why it ended."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from report_page import node_of, page_of
from report_results import tuned

from bench.report.parts import share
from bench.report.settings import SETTINGS_SHOWN


def test_the_winner_is_marked_once_and_in_words() -> None:
    page = page_of(node_of(tuned()))
    assert page.classes().count("diamond") == 1
    assert "badge good" in page.classes()


def test_every_setting_that_was_visited_is_in_the_tables_and_the_others_are_counted() -> None:
    tune = tuned()
    assert tune.outcome
    visited = [fate for fate in tune.outcome.fates if fate.name != "not visited"]
    page = page_of(node_of(tune))
    labels = [attributes.get("data-label") for _, attributes in page.elements]
    assert labels.count("Beside the winner") == len(visited) > SETTINGS_SHOWN
    assert f"{tune.outcome.grid - len(visited)} of {tune.outcome.grid} settings were not visited" in page.text


def test_changes_are_told_with_their_intervals() -> None:
    tune = tuned()
    assert tune.outcome
    text = page_of(node_of(tune)).text
    for fate in tune.outcome.fates:
        if fate.name != "winner" and fate.change is not None and fate.ci95 is not None:
            assert f"{share(fate.change)} {share(fate.ci95[0])} to {share(fate.ci95[1])}" in text


def test_it_says_why_the_race_ended_and_that_its_gain_is_flattered() -> None:
    text = page_of(node_of(tuned())).text
    assert "the budget was spent first" in text
    assert "bench verify gives the figure to believe" in text


def test_a_gain_that_the_race_is_not_sure_of_is_told_so() -> None:
    tune = tuned("pi1", "smooth")
    assert tune.outcome
    assert not tune.outcome.is_better
    assert "is not sure that it is better" in page_of(node_of(tune)).text


def test_what_the_node_had_is_not_called_the_default() -> None:
    tune = tuned("pi1", "smooth")
    assert tune.outcome
    text = page_of(node_of(tune)).text
    assert text.count("as it was") == 1
    assert "The winner beside what the node had: " in text
    tune.outcome = replace(tune.outcome, winner=tune.outcome.default)
    text = page_of(node_of(tune)).text
    assert "What the node had won." in text
    assert "default" not in text


def test_blocks_that_do_not_count_are_told_with_their_reason() -> None:
    tune = tuned()
    block = tune.blocks[0]
    tune.blocks += [msgspec.structs.replace(block, status="invalid", figures=None, reason="it throttled")] * 2
    assert "2 × it throttled" in page_of(node_of(tune)).text


def test_an_interrupted_tune_is_told_how_to_go_on() -> None:
    assert "bench tune --resume" in page_of(node_of(tuned(blocks=5))).text


def test_a_tune_that_ended_stands_before_a_newer_interrupted_one() -> None:
    node = node_of(tuned(seed=3), tuned(seed=5, blocks=4))
    assert node.tune is node.tunes[0]
