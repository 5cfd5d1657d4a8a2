"""`appliance config show`, `check` and `docs`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.__main__ import main
from appliance.config import SETTINGS

ROOT = Path(__file__).parent.parent
PI5 = ROOT / "appliance" / "profiles" / "pi5-fast.env"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command line in an empty directory, with no setting in the environment but those given."""
    monkeypatch.chdir(tmp_path)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)

    def run(*args: str, **environ: str) -> Result:
        return CliRunner().invoke(main, ["config", *args], env=environ)

    return run


def test_show_prints_each_setting_with_value_unit_and_source(run, tmp_path):
    (tmp_path / ".env").write_text("N_THREADS=2\n")
    result = run("show", "--config", str(PI5), MAX_TOKENS="64")
    rows = {line.split()[0]: line for line in result.output.splitlines()}
    assert result.exit_code == 0
    assert list(rows) == list(SETTINGS)
    assert rows["MAX_TOKENS"].split() == ["MAX_TOKENS", "64", "tokens", "environment"]
    assert rows["N_THREADS"].split() == ["N_THREADS", "2", "threads", ".env"]
    assert rows["SSE_PING_S"].split() == ["SSE_PING_S", "5", "seconds", "profile", str(PI5)]
    assert rows["OLLAMA_WARMUP"].split()[:2] == ["OLLAMA_WARMUP", "true"]
    assert rows["API_KEY_PEPPER"].split() == ["API_KEY_PEPPER", "(not", "set)", "default"]


def test_show_aligns_its_columns(run):
    lines = run("show").output.splitlines()
    assert len({line.rindex("default") for line in lines}) == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_show_masks_the_pepper(run, options):
    result = run("show", *options, API_KEY_PEPPER="hunter2-hunter2-hunter2")
    assert "********" in result.output
    assert "hunter2" not in result.output


def test_show_prints_json_for_programs(run):
    shown = json.loads(run("show", "--json", PORT="8001").stdout)
    assert list(shown) == list(SETTINGS)
    assert shown["PORT"] == {"value": 8001, "unit": None, "source": "environment"}
    assert shown["DRAIN_S"] == {"value": 25, "unit": "seconds", "source": "default"}
    assert shown["API_KEY_PEPPER"]["value"] is None


def test_show_names_every_problem_and_exits_with_2(run):
    result = run("show", PORT="0", N_CTX="x")
    assert (result.exit_code, result.stdout) == (2, "")
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["PORT", "N_CTX"]


def test_check_says_in_one_line_that_a_profile_is_right(run):
    result = run("check", str(PI5))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{PI5}: 25 of 27 settings, all valid.\n"


def test_check_names_every_problem_and_exits_with_2(run, tmp_path):
    profile = tmp_path / "node.env"
    profile.write_text("MAX_TOKEN=96\nN_CTX=64\nPORT=none\n")
    result = run("check", str(profile))
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 3


def test_check_names_a_file_that_is_missing(run):
    result = run("check", "nowhere.env")
    assert (result.exit_code, result.stderr) == (
        2,
        "nowhere.env: cannot be read: No such file or directory.\n",
    )


def test_check_judges_the_file_alone(run, tmp_path):
    (tmp_path / ".env").write_text("N_CTX=none\n")
    assert run("check", str(PI5), PORT="none").exit_code == 0
    assert "environment and .env of this shell play no part" in " ".join(run("check", "--help").output.split())


def test_docs_writes_the_table_between_its_marks_and_leaves_the_rest(run, tmp_path):
    page = tmp_path / "page.md"
    marks = [line for line in (ROOT / "docs" / "configuration.md").read_text().splitlines() if "<!-- settings" in line]
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*marks))
    assert run("docs", "--write", str(page)).exit_code == 0
    assert page.read_text() == "before\n{}\n{}{}\nafter\n".format(marks[0], run("docs").stdout, marks[1])


def test_docs_refuses_a_page_without_marks(run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    assert run("docs", "--write", str(page)).exit_code == 1
    assert page.read_text() == "nothing\n"


@pytest.mark.parametrize("command", [("config", "show"), ("drain",), ("keys", "list"), ("resume",), ("serve",)])
def test_every_command_with_a_profile_also_takes_it_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    profile = tmp_path / "node.env"
    profile.write_text("N_CTX=64\n")
    monkeypatch.setenv("APPLIANCE_CONFIG", str(profile))
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code != 0
    assert f"N_CTX: '64' is not allowed; it must be a whole number from 128 to 131072 (profile {profile})" in (
        refused.output
    )
    assert "[env var: APPLIANCE_CONFIG]" in " ".join(CliRunner().invoke(main, [*command, "--help"]).output.split())


def test_an_empty_variable_names_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_CONFIG", "")
    assert CliRunner().invoke(main, ["config", "show"]).exit_code == 0
