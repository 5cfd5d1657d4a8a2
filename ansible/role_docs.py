"""Writes the variables of every role into its README, from meta/argument_specs.yml.

`python ansible/role_docs.py` writes, `--check` only says which are out of date. What people write stands before the
heading "## Variables"; from there on the file is generated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parent / "roles"
HEADING = "## Variables"
NOTE = "Generated from meta/argument_specs.yml by `make docs`."


def generated(options: dict[str, dict[str, Any]]) -> str:
    """The section as Markdown: a paragraph for each variable, in the order of the contract."""
    return "\n".join([HEADING, "", NOTE, *(_variable(name, option) for name, option in options.items())]) + "\n"


def _variable(name: str, option: dict[str, Any]) -> str:
    return f"\n### {name}\n\n{_kind(option)}\n\n{_text(option['description'])}"


def _kind(option: dict[str, Any]) -> str:
    kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
    words = [kind]
    if "choices" in option:
        words.append("one of " + ", ".join(f"`{choice}`" for choice in option["choices"]))
    if option.get("required"):
        words.append("required")
    if "default" in option:
        words.append(f"default `{json.dumps(option['default'], ensure_ascii=False)}`")
    return " · ".join(words)


def _text(description: str | list[str]) -> str:
    """One description or several, each a paragraph."""
    paragraphs = [description] if isinstance(description, str) else description
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def with_variables(role: Path) -> str:
    """A role's README as it should be."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    readme = role / "README.md"
    text = readme.read_text() if readme.is_file() else f"# {role.name}\n\n{specs['main']['short_description']}\n"
    written = text.split(f"\n{HEADING}\n")[0].rstrip()
    return f"{written}\n\n{generated(specs['main'].get('options') or {})}"


def main() -> int:
    roles = [path.parent.parent for path in sorted(ROLES.glob("*/meta/argument_specs.yml"))]
    wanted = {role / "README.md": with_variables(role) for role in roles}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path}: not what meta/argument_specs.yml says; run: make docs", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
