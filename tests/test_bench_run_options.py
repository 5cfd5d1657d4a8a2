"""What `bench run` refuses before it asks anything: each with the option, what was given and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_runs import run_of
from click.testing import CliRunner

from bench.__main__ import main
from bench.commands.run import exit_status
from bench.commands.values import seconds_of
from bench.running.samples import Mark
from bench.running.session import Measured

NODE = ("--node", "http://pi1:8000")


def refused(*arguments: str, key: str = "pk_x") -> str:
    result = CliRunner().invoke(main, ["run", *arguments], env={"BENCH_KEY": key})
    assert result.exit_code == 2, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-i", "nobody,"), "has no nodes"),
        (("--node", "pi1"), "'--node': 'pi1': a URL such as"),
        (("--node", "ftp://pi1"), "a URL such as"),
        (("--node", "http://pi1:99999"), "a URL such as"),
        (("--node", "../x=http://pi1"), "a URL such as"),
        (("--node", "a b=http://pi1"), "a name of letters"),
        ((*NODE, *NODE), "pi1-8000 is given twice"),
        ((*NODE, "--concurrency", "1,x"), "'--concurrency': '1,x': whole numbers from 1 to 1024"),
        ((*NODE, "--concurrency", "0"), "whole numbers from 1 to 1024"),
        ((*NODE, "--rate", "nan"), "numbers from 0.001 to 1000"),
        ((*NODE, "--rate", "1", "--concurrency", "2"), "--concurrency and --rate: one kind of load at a time"),
        ((*NODE, "--slo", "ttft=2s,ttft=3s"), "'--slo': 'ttft=3s'"),
        ((*NODE, "--slo", "speed=2s"), "'speed=2s': ttft, tpot and e2e"),
        ((*NODE, "--duration", "soon"), "'--duration': 'soon': a duration above 0"),
        ((*NODE, "--max-tokens", "0"), "'--max-tokens'"),
        ((*NODE, "--prompt-tokens", "8"), "'--prompt-tokens'"),
        ((*NODE, "--key-file", "/no/such/file"), "'--key-file'"),
        ((*NODE, "--resume", "--max-tokens", "3"), "leave --max-tokens out"),
        ((*NODE, "--resume", "--requests", "3"), "leave --requests out"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(*arguments)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none_is_refused_and_never_repeated(key: str, tmp_path: Path) -> None:
    said = refused(*NODE, key=key)
    assert "API key" in said
    assert not key or key not in said
    (tmp_path / "key").write_text("")
    assert "is empty" in refused(*NODE, "--key-file", str(tmp_path / "key"))


def test_durations_have_units() -> None:
    texts = ("2", "2s", "200ms", "1.5m", "1h", "", "s", "-1s", "1 s")
    assert [seconds_of(text) for text in texts] == [2.0, 2.0, 0.2, 90.0, 3600.0, None, None, None, None]


def test_the_exit_status_tells_failed_from_invalid_from_interrupted() -> None:
    good, bad = run_of(), run_of(marks=[Mark("restarted", "", "")])
    noted = run_of(marks=[Mark("short_answers", "", "", is_invalid=False)])
    assert exit_status([Measured("a", good), Measured("b", noted)], False) == 0
    assert exit_status([Measured("a", good), Measured("b", bad)], False) == 3
    assert exit_status([Measured("a", bad), Measured("b", problem="down")], False) == 1
    assert exit_status([Measured("a", good)], True) == 130
