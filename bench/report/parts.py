"""What a report's sections are made of: tables that become cards on a phone, figures with intervals, words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bench.report.markup import Child, Markup, element, joined
from bench.running.run_table import number
from bench.running.samples import Mark
from bench.running.summary import Estimate

NONE = element("span", "–", class_="none")


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Child]], foot: Sequence[Child] = ()) -> Markup:
    """Rows whose first cell is their head. Roles are told, for a phone's layout takes a table's own away."""
    top = [element("th", head, scope="col", role="columnheader") for head in heads]
    body = [_row(heads, row) for row in rows]
    tail = element("tfoot", element("tr", *(element("td", cell) for cell in foot)), aria_hidden="true")
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *top, role="row"), role="rowgroup"),
            element("tbody", *body, role="rowgroup"),
            tail if foot else None,
            role="table",
        ),
        class_="scroll",
    )


def _row(heads: Sequence[str], cells: Sequence[Child]) -> Markup:
    first, *others = cells
    data = [
        element("td", element("div", cell), role="cell", data_label=head)
        for head, cell in zip(heads[1:], others, strict=True)
    ]
    return element("tr", element("th", first, scope="row", role="rowheader"), *data, role="row")


def figure(estimate: Estimate | None, n: int | None = None) -> Markup:
    """The value, and below it its interval and n; a bound that the data did not set is open."""
    if estimate is None:
        return NONE
    parts = [interval(estimate.low, estimate.high), f"n\N{NO-BREAK SPACE}{n:,}" if n is not None else ""]
    return joined(element("b", number(estimate.value)), below(" · ".join(part for part in parts if part)))


def below(words: Child) -> Markup:
    """Small print on a line of its own."""
    return element("small", " ", words, class_="below") if words else Markup("")


def interval(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "no interval"
    if low is None or high is None:
        return f"from {number(low)}" if low is not None else f"to {number(high or 0.0)}"
    return f"{number(low)} to {number(high)}"


def share(value: float) -> str:
    """A change, as people write it."""
    return f"{100 * value:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def badge(word: str, kind: str) -> Markup:
    """kind: good, bad, warn, plain. The word says it too."""
    return element("span", word, class_=f"badge {kind}")


def marks(found: Sequence[Mark]) -> Markup:
    """What speaks against a run, and what to do about it."""
    rows = [
        element(
            "li",
            badge("invalid", "bad") if mark.is_invalid else badge("note", "warn"),
            f" {mark.reason}. ",
            element("span", f"{mark.remedy[:1].upper()}{mark.remedy[1:]}.", class_="remedy"),
        )
        for mark in found
    ]
    return element("ul", *rows, class_="marks") if rows else Markup("")


def facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Names and values; what is not known is left out."""
    shown = [element("div", element("dt", name), element("dd", value)) for name, value in pairs if value]
    return element("dl", *shown, class_="facts")


def moment(text: Any) -> datetime | None:
    """A time with a zone, as ISO 8601 writes it."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None


def day(text: str) -> str:
    """A time in UTC, for people; what is none stays as it is."""
    at = moment(text)
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}" if at else text


def age(text: Any, now: datetime) -> str:
    """How long ago; nothing where the time is none."""
    at = moment(text)
    if at is None:
        return ""
    seconds = (now - at).total_seconds()
    if seconds < 0:
        return "from the future"
    for unit, size in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0)):
        count = int(seconds // size)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
