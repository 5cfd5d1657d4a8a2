"""`bench report`: what it writes where, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from report_results import measured_run, write

from bench.__main__ import main


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *(str(each) for each in arguments)])


def test_it_writes_one_file_beside_the_results(tmp_path: Path) -> None:
    write(tmp_path, measured_run())
    result = report("--results", tmp_path)
    assert (result.exit_code, result.output) == (0, f"{tmp_path}/report.html: 1 node\n")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_it_writes_where_it_is_told(tmp_path: Path) -> None:
    write(tmp_path, measured_run())
    report("--results", tmp_path, "-o", tmp_path / "out" / "fleet.html")
    assert (tmp_path / "out" / "fleet.html").exists()
    assert not (tmp_path / "report.html").exists()


def test_without_results_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    result = report("--results", tmp_path)
    assert result.exit_code == 1
    assert "no results in" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told_with_the_remedy(tmp_path: Path) -> None:
    write(tmp_path, measured_run())
    (tmp_path / "file").write_text("")
    result = report("--results", tmp_path, "-o", tmp_path / "file" / "report.html")
    assert result.exit_code == 1
    assert "name another file with -o" in result.output


def test_json_names_the_file_the_nodes_and_the_problems(tmp_path: Path) -> None:
    write(tmp_path, measured_run())
    (tmp_path / "pi1" / "20260101T000000Z-run-000000.json").write_text("{}")
    found = json.loads(report("--results", tmp_path, "--json").stdout)
    assert (found["file"], found["nodes"]) == (f"{tmp_path}/report.html", ["pi1"])
    assert "no format number" in found["problems"][0]
