"""What is shown while nodes are measured, on stderr: a bar a node on a terminal, else a line a stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from bench.running.node_run import Progress

DRAW_EVERY_S = 0.5


class Lines:
    """For logs and pipes."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def tell(self, progress: Progress) -> None:
        if self._told.get(progress.node) != progress.stage:
            self._told[progress.node] = progress.stage
            best = f", {progress.best}" if progress.best else ""
            left = f", {progress.left_s:.0f} s left" if progress.left_s is not None and progress.done else ""
            click.echo(f"{progress.node}: {progress.stage}, {progress.total} {progress.unit}{left}{best}", err=True)


class Bars:
    """For people: rich's bars."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._tasks: dict[str, Any] = {}
        self._drawn_at = 0.0

    def tell(self, progress: Progress) -> None:
        if progress.node not in self._tasks:
            self._tasks[progress.node] = self._display.add_task("", node=progress.node, stage="", left="")
        left = "" if progress.left_s is None else f"{progress.left_s:.0f} s left"
        left = "  ".join(part for part in (left, progress.best) if part)
        task = self._tasks[progress.node]
        self._display.update(task, completed=progress.done, total=progress.total, stage=progress.stage, left=left)
        if time.monotonic() - self._drawn_at >= DRAW_EVERY_S:
            self._drawn_at = time.monotonic()
            self._display.refresh()


@contextmanager
def shown() -> Iterator[Lines | Bars]:
    """Bars where stderr is a terminal and rich is there."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Display
        from rich.table import Column
    except ImportError:
        yield Lines()
        return
    if not sys.stderr.isatty():
        yield Lines()
        return
    columns = (
        TextColumn("{task.fields[node]}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[stage]}  {task.fields[left]}", table_column=Column(ratio=1, overflow="ellipsis")),
    )
    # Drawn when something is told: rich's own thread would draw at moments that are being measured.
    with Display(*columns, console=Console(stderr=True), transient=True, auto_refresh=False, expand=True) as display:
        bars = Bars(display)
        yield bars
