"""Judges a node's settings on the controller, with the appliance's own code from this folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

PROJECT = Path(__file__).resolve().parent.parent.parent


def appliance_problems(settings: Mapping[str, object]) -> list[str]:
    """Sentences that say what is wrong, each with the variable's name; none when all is right.

    Where the appliance's dependencies are not installed beside ansible, nothing is judged here: the node itself does
    so, before the settings take effect.
    """
    if str(PROJECT) not in sys.path:
        sys.path.append(str(PROJECT))
    try:
        from appliance.sources import ConfigError, load
    except ImportError:
        return []
    with TemporaryDirectory() as folder:
        profile = Path(folder) / "appliance.env"
        profile.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        try:
            load(profile, environ={}, dotenv=None)
        except ConfigError as error:
            return [_sentence(problem.name, problem.sentence, f" (profile {profile})") for problem in error.problems]
    return []


def _sentence(name: str, sentence: str, source: str) -> str:
    """Of the variable that people set, not of the file that was written to ask."""
    return f"appliance_{name.lower()}, {sentence.replace(source, '')}"


class FilterModule:
    def filters(self) -> dict[str, Callable[..., object]]:
        return {"appliance_problems": appliance_problems}
