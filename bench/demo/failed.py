"""Why a demo ends."""

from __future__ import annotations

import click


class DemoFailed(click.ClickException):
    """Something did not come up, or ended; the message says what, and where its log is."""
