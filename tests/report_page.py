"""A report as a reader of HTML sees it: its elements, its text, and whether every element is closed."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

from report_results import Run, TuneRun, VerifyRun

from bench.report.data import NodeView, Results, view
from bench.report.markup import VOID
from bench.report.page import page

NOW = datetime(2026, 1, 10, 12, 0, tzinfo=UTC)


class Page(HTMLParser):
    """elements: name and attributes of each, in order. text: all of it, without the style sheet's."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.text = html, ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def classes(self) -> list[str]:
        return [str(attributes.get("class")) for _, attributes in self.elements]


def node_of(*found: Run | TuneRun | VerifyRun, name: str = "pi1") -> NodeView:
    return NodeView(
        name,
        tuple(view(each) for each in found if isinstance(each, Run)),
        tuple(each for each in found if isinstance(each, TuneRun)),
        tuple(each for each in found if isinstance(each, VerifyRun)),
    )


def page_of(*nodes: NodeView, unreadable: tuple[tuple[str, str], ...] = ()) -> Page:
    return Page(page(Results(nodes, unreadable), NOW, "bench/results"))
