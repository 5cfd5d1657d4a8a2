"""`--config FILE`, or APPLIANCE_CONFIG: the profile that a command reads its settings from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

VARIABLE = "APPLIANCE_CONFIG"

F = TypeVar("F", bound=Callable[..., Any])


def profile_option(meaning: str = "The profile that the service was started with.") -> Callable[[F], F]:
    """Give a command the argument `profile`: a path, or None."""
    return click.option(
        "--config",
        "profile",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar=VARIABLE,
        show_envvar=True,
        help=meaning,
    )
