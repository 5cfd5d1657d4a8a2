"""Two runs beside each other: the test's exactness, and what `bench compare` says."""

from __future__ import annotations

import random
from math import comb, expm1
from pathlib import Path

import msgspec
import pytest
from bench_runs import made, stage_of
from click.testing import CliRunner

from bench.commands.compare import command
from bench.running import runfile
from bench.running.samples import Mark, Run, Settings
from bench.running.two_runs import _below, differences, rows, two_samples


def noise(rng: random.Random, n: int = 20, shift: float = 0.0) -> list[float]:
    return [rng.lognormvariate(shift, 0.02) for _ in range(n)]


def run(node: str, ttft_s: float, tpot_s: float = 0.1, **fields: object) -> Run:
    samples = [made(at_s=k, ttft_s=ttft_s + k / 1000, tpot_s=tpot_s, number=k) for k in range(12)]
    settings = Settings(seed=1, prompt_tokens=(40,), max_tokens=5, loads=(), requests=12)
    base = {"id": f"20260101T000000Z-run-{node}", "session": "s", "node": node, "url": "http://x", "bench_version": "1"}
    return msgspec.convert(
        {**base, "started_at": "2026-01-01T00:00:00+00:00", **fields, "settings": msgspec.to_builtins(settings),
         "stages": msgspec.to_builtins([stage_of(*samples)])}, Run,
    )  # fmt: skip


def test_the_distribution_of_u_is_exact() -> None:
    assert _below(1, 1) == (0.5, 1.0)
    assert _below(3, 2)[0] == 1 / comb(5, 2)
    assert all(a <= b for a, b in zip(_below(6, 9), _below(6, 9)[1:], strict=False))


def test_equal_samples_are_rarely_called_different() -> None:
    rng = random.Random(3)
    called = sum(two_samples(noise(rng), noise(rng)).kind != "same" for _ in range(1000))
    assert called <= 65  # 50 are expected; 65 is two standard errors above


def test_the_interval_covers_the_change() -> None:
    rng = random.Random(4)
    intervals = [two_samples(noise(rng), noise(rng, shift=0.03)).ci95 for _ in range(1000)]
    assert 930 <= sum(low <= expm1(0.03) <= high for low, high in intervals) <= 975


def test_less_is_better_for_latencies() -> None:
    found = {row.quantity: row.verdict.kind for row in rows(run("a", 1.0), run("b", 0.5))}
    assert (found["ttft_s"], found["tpot_s"]) == ("faster", "same")


def test_what_else_differs_is_told() -> None:
    a, b = run("a", 1.0, fingerprint={"model": "x"}), run("b", 1.0, fingerprint={"model": "y"})
    assert differences(a, b) == ["model: x and y"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for one in (run("a", 1.0), run("b", 0.5)):
        runfile.save(one, tmp_path)
    return tmp_path


def test_nodes_are_compared_by_their_newest_runs(results: Path) -> None:
    told = CliRunner().invoke(command, ["a", "b", "--results", str(results)])
    assert told.exit_code == 0
    assert "TTFT ms" in told.output
    assert "faster by 50 %" in told.output
    assert "not interleaved" in told.output


def test_a_run_that_must_decide_nothing_is_refused_with_the_reason(results: Path) -> None:
    bad = run("b", 0.5, marks=msgspec.to_builtins([Mark("throttled", "the board throttled", "cool it")]))
    runfile.save(bad, results)
    told = CliRunner().invoke(command, ["a", "b", "--results", str(results)])
    assert told.exit_code == 1
    assert "the board throttled (cool it)" in told.output


def test_a_node_without_runs_is_told(results: Path) -> None:
    told = CliRunner().invoke(command, ["a", "c", "--results", str(results)])
    assert told.exit_code == 1
    assert "c is no file, and no node of" in told.output


def test_a_run_is_not_compared_with_itself(results: Path) -> None:
    told = CliRunner().invoke(command, ["a", "a", "--results", str(results)])
    assert told.exit_code == 1
    assert "a and a are the same run, 20260101T000000Z-run-a" in told.output
