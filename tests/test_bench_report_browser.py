"""A report in a real browser: what a reader sees on a desk, on a phone, in the dark, on paper and by ear."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Browser, program, running_browser
from click.testing import CliRunner
from report_page import node_of, page_of
from report_results import UNDERVOLTAGE, fleet, measured_run
from test_bench_report_escaping import evil_page

from bench.__main__ import main

pytestmark = [
    pytest.mark.tier2,
    pytest.mark.skipif(program() is None, reason="needs a browser; on Debian: sudo apt-get install chromium"),
]
PHONE_PX, DESK_PX, A4_PX = 360, 1280, 718
AA = 4.5  # WCAG 2.2, 1.4.3; large text would need only 3
AA_GRAPHICS = 3.0  # 1.4.11

UNFOLD = "document.querySelectorAll('details').forEach(each => each.open = true)"
WIDER = """[document.documentElement, ...document.querySelectorAll('.scroll')]
    .filter(each => each.scrollWidth > each.clientWidth).map(each => each.tagName + ' ' + each.scrollWidth)"""
LOOKS = """(() => {
    const behind = each => {
        while (each && getComputedStyle(each).backgroundColor === 'rgba(0, 0, 0, 0)') each = each.parentElement
        return each ? getComputedStyle(each).backgroundColor : 'none'
    }
    const seen = []
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (texts.nextNode()) {
        const text = texts.currentNode.textContent.trim(), each = texts.currentNode.parentElement
        if (!text || !each.checkVisibility({contentVisibilityAuto: true})) continue
        seen.push([text, getComputedStyle(each)[each.closest('svg') ? 'fill' : 'color'], behind(each)])
    }
    for (const each of document.querySelectorAll('td, summary')) {
        const label = getComputedStyle(each, '::before')
        if (label.content !== 'none') seen.push([label.content, label.color, behind(each)])
    }
    return seen
})()"""
LINES = """[...document.querySelectorAll('.whisker, .dot, .mark, .change, .p95, .p99')].map(each => {
    const style = getComputedStyle(each), card = getComputedStyle(each.closest('.node, section')).backgroundColor
    return [each.getAttribute('class'), style.stroke === 'none' ? style.fill : style.stroke, card]
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `bench report` writes of a small fleet, as a URL."""
    results = tmp_path_factory.mktemp("results")
    fleet(results)
    written = CliRunner().invoke(main, ["report", "--results", str(results)])
    assert written.exit_code == 0
    return (results / "report.html").as_uri()


@pytest.fixture
def page(browser: Browser, report: str) -> Browser:
    """That report, on a desk, in the light, as it opens."""
    browser.look(DESK_PX)
    browser.open(report)
    return browser


def shown(browser: Browser, folder: Path, html: str) -> None:
    path = folder / "report.html"
    path.write_text(html)
    browser.look(DESK_PX)
    browser.open(path.as_uri())


def test_it_opens_from_disk_asks_for_nothing_else_and_nothing_is_complained_of(page: Browser, report: str) -> None:
    page.evaluate(UNFOLD)
    assert page.requests == [report]
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert page.complaints == []


def test_its_policy_would_stop_a_script_and_an_image(page: Browser) -> None:
    page.evaluate(
        "for (const [tag, key, value] of [['script', 'text', 'window.ran = 1'], ['img', 'src', 'http://127.0.0.1:9/']])"
        " document.body.append(Object.assign(document.createElement(tag), {[key]: value}))"
    )
    assert page.evaluate("window.ran") is None
    assert len([each for each in page.complaints if "Content Security Policy" in each]) == 2


def test_names_that_would_be_markup_are_text(browser: Browser, tmp_path: Path) -> None:
    shown(browser, tmp_path, evil_page().html)
    assert browser.complaints == []
    assert browser.evaluate("document.querySelectorAll('script, img, [onerror]').length") == 0
    assert "<script>alert(1)</script>" in browser.evaluate("document.querySelector('.node h2').textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [DESK_PX, PHONE_PX])
def test_all_text_stands_out_from_what_is_behind_it(page: Browser, scheme: str, width_px: int) -> None:
    page.look(width_px, scheme)
    page.evaluate(UNFOLD)
    seen = page.evaluate(LOOKS)
    assert len(seen) > 500
    assert [(text, color, back) for text, color, back in seen if contrast(color, back) < AA] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_points_and_intervals_stand_out_from_their_card(page: Browser, scheme: str) -> None:
    page.look(DESK_PX, scheme)
    assert {name for name, color, card in page.evaluate(LINES) if contrast(color, card) < AA_GRAPHICS} == set()


def test_it_is_dark_where_the_reader_likes_it_dark(page: Browser) -> None:
    backs = []
    for scheme in ("light", "dark"):
        page.look(DESK_PX, scheme)
        backs.append(luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert backs[0] > 0.8
    assert backs[1] < 0.05


@pytest.mark.parametrize("width_px", [320, PHONE_PX, 736, 1056, DESK_PX])
def test_nothing_is_wider_than_the_screen(page: Browser, width_px: int) -> None:
    page.look(width_px)
    page.evaluate(UNFOLD)
    assert page.evaluate(WIDER) == []


def test_a_long_name_is_broken_rather_than_wider_than_a_phone(browser: Browser, tmp_path: Path) -> None:
    name = "n" * 80
    shown(browser, tmp_path, page_of(node_of(measured_run(name), name=name), unreadable=((name, name),)).html)
    browser.look(PHONE_PX)
    assert browser.evaluate(WIDER) == []


def test_on_a_phone_each_row_of_a_table_is_a_card_with_its_cells_labelled(page: Browser) -> None:
    cells = """[...document.querySelectorAll('.fleet tbody tr:first-child td:not(:has(.strip))')].map(each => {
        const {left, top} = each.getBoundingClientRect()
        return [getComputedStyle(each, '::before').content, Math.round(left), top]})"""
    assert len({top for _, _, top in page.evaluate(cells)}) == 1
    page.look(PHONE_PX)
    labels, lefts, tops = zip(*page.evaluate(cells), strict=True)
    assert labels[:3] == ('"Board"', '"Model"', '"Decode tokens/s"')
    assert len(set(lefts)) == 1
    assert list(tops) == sorted(set(tops))


def test_every_node_has_a_section_with_all_that_was_measured(page: Browser) -> None:
    sections = page.evaluate("[...document.querySelectorAll('.node')].map(each => each.innerText)")
    assert [text.split()[0] for text in sections] == ["pi1", "pi2", "pi3", "workshop-x86"]
    for text in sections:
        assert {"p50", "p90", "p95", "p99"} <= set(text.split())
        assert "Throughput under load" in text
    tuned = sections[0]
    assert "Settings against throughput" in tuned
    assert re.search(r"−\d+\.\d\s%\s−\d+\.\d\s% to [−+]\d+\.\d\s%", tuned)
    assert "New profile against old" in tuned
    assert "N_CTX 512 → 1024" in tuned[tuned.index("History") :]


def test_a_link_to_a_folded_node_unfolds_it(browser: Browser, tmp_path: Path) -> None:
    runs = [measured_run(f"pi{number}", loads=(1,), requests=8) for number in range(8)]
    shown(browser, tmp_path, page_of(*(node_of(run, name=run.node) for run in runs)).html)
    unfolded = "[...document.querySelectorAll('.node[open] h2')].map(each => each.textContent)"
    assert browser.evaluate(unfolded) == []
    browser.evaluate("document.querySelectorAll('.fleet tbody a')[5].click()")
    browser.evaluate("new Promise(done => setTimeout(done))")
    assert browser.evaluate(unfolded) == ["pi5"]
    top_px = browser.evaluate("document.querySelector('.node[open] h2').getBoundingClientRect().top")
    assert 0 <= top_px < 200


def test_on_paper_all_is_unfolded_light_and_within_the_sheet(browser: Browser, tmp_path: Path) -> None:
    runs = [measured_run(f"pi{number}", loads=(1, 2), marks=[UNDERVOLTAGE][: number == 2]) for number in range(8)]
    shown(browser, tmp_path, page_of(*(node_of(run, name=run.node) for run in runs)).html)
    assert len(re.findall(rb"/Type\s*/Page\b", browser.printed())) >= len(runs)
    browser.look(A4_PX, "dark", "print")
    folded = (
        "[...document.querySelectorAll('td, th, p')].filter(e => !e.checkVisibility({contentVisibilityAuto: true}))"
    )
    assert browser.evaluate(f"{folded}.length") == 0
    assert browser.evaluate(WIDER) == []
    assert {contrast(color, "rgb(255, 255, 255)") >= AA for _, color, _ in browser.evaluate(LOOKS)} == {True}


@pytest.mark.parametrize("width_px", [DESK_PX, PHONE_PX])
def test_a_screen_reader_hears_tables_with_heads_and_names(page: Browser, width_px: int) -> None:
    page.look(width_px)
    page.evaluate(UNFOLD)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    heard = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    roles = [role for role, _ in heard]
    tables = [name for role, name in heard if role == "table"]
    assert len(tables) == page.evaluate("document.querySelectorAll('table').length")
    assert all(tables)
    assert ("columnheader", "Decode tokens/s") in heard
    assert ("rowheader", "pi1") in heard
    assert roles.count("cell") > 100
    pictures = [name for role, name in heard if role == "image"]
    assert pictures
    assert all("runs, from" in name for name in pictures)
    assert page.evaluate("document.querySelectorAll('svg:not([aria-hidden=true], [role=img][aria-label])').length") == 0


def test_headings_lead_step_by_step(page: Browser) -> None:
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(each => +each.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_keyboard_reaches_every_link_and_folds_every_section(page: Browser) -> None:
    wanted = page.evaluate("[...document.querySelectorAll('a, .node > summary')].map(each => each.textContent)")
    reached = []
    for _ in range(40):
        press(page, "Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert [text for text in wanted if text not in reached] == []
    page.evaluate("document.querySelector('.node > summary').focus()")
    press(page, "Enter", text="\r")
    assert page.evaluate("document.querySelector('.node').open") is False


@pytest.mark.parametrize(
    ("color", "back", "ratio"),
    [("rgb(0, 0, 0)", "rgb(255, 255, 255)", 21.0), ("rgb(119, 119, 119)", "rgb(255, 255, 255)", 4.48)],
)
def test_contrast_is_as_wcag_defines_it(color: str, back: str, ratio: float) -> None:
    assert round(contrast(color, back), 2) == ratio


def press(page: Browser, key: str, **more: str) -> None:
    code = {"Tab": 9, "Enter": 13}[key]
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)


def contrast(color: str, back: str) -> float:
    """WCAG 2.2's ratio."""
    high, low = sorted((luminance(color), luminance(back)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Relative luminance of what a style says, as WCAG 2.2 defines it; nothing is transparent here."""
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", color)
    assert found, color
    channels = [int(value) / 255 for value in found.groups()]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
