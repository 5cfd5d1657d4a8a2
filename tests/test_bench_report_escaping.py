"""Whatever comes from outside is text in a report: names of nodes and boards, reasons, problems, settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_page import Page, node_of, page_of
from report_results import measured_run, node_facts, tuned, write

from bench.report.data import gathered
from bench.report.markup import Markup, element, joined
from bench.running.samples import Mark

EVIL = "</style></title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def evil_page() -> Page:
    board = {**node_facts()["board"], "name": EVIL, "os": EVIL, "firmware": EVIL}
    facts = node_facts(board=board, governor=EVIL, settings={"N_CTX": EVIL, EVIL: 1}, model={"digest": EVIL})
    changed = node_facts(board=board, settings={"N_CTX": EVIL + "2"})
    marks = [Mark(EVIL, EVIL, EVIL)]
    runs = (
        measured_run(EVIL, 1, facts=facts),
        measured_run(EVIL, 2, facts=changed, marks=marks, problem=EVIL, id=f"20260102-run-{EVIL}", started_at=EVIL),
    )
    tune = tuned()
    tune.problem, tune.id, tune.started_at = EVIL, EVIL, EVIL
    return page_of(node_of(*runs, tune, name=EVIL), unreadable=((EVIL, EVIL),))


def test_nothing_from_outside_becomes_an_element_or_an_attribute() -> None:
    page = evil_page()
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert EVIL in page.text


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", "a<b", Markup("<i>"), 3, None, title='"x"') == '<p title="&quot;x&quot;">a&lt;b<i>3</p>'


def test_joining_keeps_escaping() -> None:
    assert joined("<", element("b", "&")) == "&lt;<b>&amp;</b>"


@pytest.mark.parametrize("char", ["\x00", "\x1b", "\N{RIGHT-TO-LEFT OVERRIDE}", "\N{LEFT-TO-RIGHT ISOLATE}"])
def test_characters_that_turn_or_break_text_are_replaced(char: str) -> None:
    assert element("p", f"a{char}b") == "<p>a\N{REPLACEMENT CHARACTER}b</p>"


def test_a_key_that_a_node_sent_back_among_its_settings_is_not_shown(tmp_path: Path) -> None:
    facts = node_facts(settings={"N_CTX": 512, "API_KEY_PEPPER": "hunter2hunter2"})
    write(tmp_path, measured_run(facts=facts, url="http://user:hunter2hunter2@pi1:8000"))
    assert "hunter2" not in page_of(*gathered(tmp_path).nodes).html
