"""A node's newest measurement that may be used, without reading all there ever were."""

from __future__ import annotations

from pathlib import Path

from bench.report import data as report_data
from bench.report.data import BlockSpeed, RunView
from bench.running import runfile
from bench.running.runfile import RunFileError
from bench.running.samples import KIND, Run
from bench.tuning import tune_file, verify_file
from bench.tuning.tune_file import TuneRun
from bench.tuning.verify_file import VerifyRun


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


def newest_blocks(results: Path, node: str) -> BlockSpeed | None:
    """What the newest tune or verification measured with what it chose; for a node without a run that may be used."""
    kinds: dict[str, type[TuneRun | VerifyRun]] = {tune_file.KIND: TuneRun, verify_file.KIND: VerifyRun}
    paths = [(path, shape) for kind, shape in kinds.items() if (path := runfile.newest(results, node, kind))]
    for path, shape in sorted(paths, key=lambda found: found[0].name, reverse=True):
        try:
            speed = report_data.block_speed(runfile.read(path, shape))
        except RunFileError:
            continue
        if speed is not None:
            return speed
    return None
