"""The table of `make bench-fleet`, and the fake nodes that it measures with."""

from __future__ import annotations

import gevent
import pytest

from bench.fleet_scale import Cost, fleet, table
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
