"""The table of `make bench-fleet`, and the fake nodes that it measures with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import gevent
import pytest

from bench.fleet_scale import PROFILE, Cost, cost, fleet, table
from bench.inventory import tuned_file
from bench.running.client import Patience, Target, generate, get
from bench.running.node_facts import counters, require_ready


def row_of(costs: list[Cost], nodes: str) -> list[str]:
    rows = [[cell.strip() for cell in line.split("|")] for line in table(costs)]
    return next(row for row in rows if row[1:3] == ["bench run", nodes])


def test_a_further_node_costs_what_a_size_costs_beyond_the_smaller_one() -> None:
    costs = [Cost("bench run", 10, 5.0, 1.0, 40.0), Cost("bench run", 100, 5.0, 1.9, 49.0)]
    row = row_of(costs, "100")
    assert (row[6], row[8]) == ("10", "102")
    assert row_of(costs, "10")[6] == ""


def test_a_figure_is_the_median_with_the_lowest_and_the_highest_round_and_n() -> None:
    row = row_of([Cost("bench run", 10, wall, 1.0, 40.0) for wall in (9.0, 1.0, 2.0)], "10")
    assert (row[3], row[9]) == ("2 (1-9)", "3")


def test_runs_that_bench_would_not_believe_are_counted() -> None:
    costs = [Cost("bench run", 10, 1.0, 1.0, 1.0, invalid=3), Cost("bench report", 10, 1.0, 1.0, 1.0)]
    assert table(costs)[-1].startswith("3 of 10 runs were invalid")


def test_a_steps_memory_is_its_own_whatever_the_meter_holds(tmp_path: Path) -> None:
    held = b"x" * (200 << 20)
    small = cost("nothing", 1, [sys.executable, "-I", "-S", "-c", ""], tmp_path)
    assert len(held) >> 20 == 200
    assert 0 < small.memory_mib < 100


def test_a_step_that_fails_ends_the_measurement_with_its_words(tmp_path: Path) -> None:
    script = "import sys; print('out', flush=True); print('no room', file=sys.stderr); sys.exit(7)"
    with pytest.raises(SystemExit, match="exit 7\nout\nno room"):
        cost("bench show", 1, [sys.executable, "-c", script], tmp_path)


def test_a_profile_waits_for_the_disk_as_often_in_a_large_fleet_as_in_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    after = []
    for number in range(50):
        tuned_file.write(tmp_path, f"node{number}", PROFILE)
        after.append(len(synced))
    assert after == [2 * (number + 1) for number in range(50)]  # the file's content and its name


@pytest.mark.tier2
def test_a_fake_node_answers_what_bench_asks_of_an_appliance() -> None:
    with fleet(2) as ports:
        one, other = (Target(f"n{port}", f"http://127.0.0.1:{port}", "fake") for port in ports)
        require_ready(one)
        replies = [gevent.spawn(generate, one, "able aged", tokens, Patience()) for tokens in (1, 2)]
        counts = [reply.get().counts for reply in replies]
        assert [(each.prompt_tokens, each.completion_tokens) for each in counts if each] == [(22, 1), (22, 2)]
        seen = [counters(get(node, "/metrics", Patience())[1].decode()) for node in (one, other)]
    assert seen == [{"appliance_generations_total": 2.0}, {"appliance_generations_total": 0.0}]
