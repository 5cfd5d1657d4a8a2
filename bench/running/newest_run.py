"""A node's newest run that may be used, without reading all there ever were."""

from __future__ import annotations

from pathlib import Path

from bench.report import data as report_data
from bench.report.data import RunView
from bench.running import runfile
from bench.running.runfile import RunFileError
from bench.running.samples import KIND, Run


def newest_usable(results: Path, node: str) -> RunView | None:
    """From the newest file back to the first that is valid; unreadable ones are passed over."""
    for path in sorted((results / node).glob(f"[0-9]*-{KIND}-*{runfile.SUFFIX}"), reverse=True):
        try:
            view = report_data.view(runfile.read(path, Run))
        except RunFileError:
            continue
        if view.is_usable:
            return view
    return None
