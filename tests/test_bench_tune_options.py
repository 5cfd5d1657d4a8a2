"""What `bench tune` and `bench verify` refuse before they ask anything: the option, and what is allowed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from bench.__main__ import main

NODE = ("--node", "http://pi1:8000")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune", "--resume", "--seed", "3"), "leave --seed out"),
        (("tune", "--resume", "--slots", "1"), "leave --slots out"),
        (("tune", "--slots", "1,2"), "--slots: another number of slots needs a restart; allow it with --restarts"),
        (("tune", "--restarts"), "name it with --inventory"),
        (("tune", "--slots", "0"), "'--slots': '0': whole numbers from 1 to 1024"),
        (("tune", "--min-ctx", "64"), "'--min-ctx'"),
        (("tune", "--max-ttft-ms", "0"), "'--max-ttft-ms'"),
        (("tune", "--headroom", "-1"), "'--headroom'"),
        (("tune", "--cool-to", "200"), "'--cool-to'"),
        (("tune", "--commit", "--dry-run"), "nothing to commit"),
        (("verify", "--resume", "--rounds", "9"), "leave --rounds out"),
        (("verify", "--resume", "--objective", "latency"), "leave --objective out"),
        (("verify", "--rounds", "3"), "'--rounds'"),
        (("verify", "--apply", "--dry-run"), "--apply deploys what --dry-run does not put back"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(arguments: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(main, [*arguments, *NODE], env={"BENCH_KEY": "pk_x"})
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.replace("│", " ").split())
