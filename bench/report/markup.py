"""HTML and SVG from nested calls, so that escaping cannot be forgotten: what is not Markup is escaped. Pure."""

from __future__ import annotations

from html import escape

VOID = frozenset({"meta", "br", "line", "rect", "circle", "path", "polygon"})
UNPRINTABLE = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127), "�")
# Characters that turn the order of what stands beside them: a name could read as another.
UNPRINTABLE |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\N{REPLACEMENT CHARACTER}")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | int | None
Attribute = str | int | float | bool | None


def element(tag: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """One element. `class_` is class, `aria_label` aria-label; None and False are left out, True stands alone.

    A child of None is left out, a Markup stands as it is, everything else is text.
    """
    head = f"<{tag}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    if tag in VOID:
        return Markup(head if tag in ("meta", "br") else head[:-1] + "/>")
    return Markup(f"{head}{joined(*children)}</{tag}>")


def joined(*children: Child) -> Markup:
    return Markup("".join(_text(child) for child in children))


def _text(child: Child) -> str:
    if child is None:
        return ""
    return child if isinstance(child, Markup) else escape(str(child).translate(UNPRINTABLE))


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escape(shown.translate(UNPRINTABLE))}"'
