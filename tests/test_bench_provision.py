"""bench-provision reads Ansible's recap and gives medians with their spread, ratios taken within rounds."""

from __future__ import annotations

from bench.provision import Measured, Run, most, table

RECAP = """
PLAY RECAP *********************************************************************
localhost                  : ok=3    changed=0    unreachable=0    failed=0    skipped=0    rescued=0    ignored=0
bench1                     : ok=43   changed=6    unreachable=0    failed=0    skipped=48   rescued=0    ignored=0
bench2                     : ok=42   changed=6    unreachable=0    failed=0    skipped=47   rescued=0    ignored=0
"""


def measured(hosts: int, cold_s: float, warm_s: float, pings_s: float) -> Measured:
    return Measured(hosts, Run(cold_s, 72, 34, 29), Run(warm_s, 42, 45, 0), Run(pings_s, 42, 0, 0))


def test_the_recap_of_the_node_with_the_most_tasks_counts() -> None:
    assert most(RECAP) == (43, 48, 6)


def test_a_row_has_medians_and_the_lowest_and_highest_round() -> None:
    rounds = [measured(2, 60, 20, 10), measured(2, 80, 30, 10), measured(2, 70, 40, 40)]
    assert table(rounds)[2] == ("| 2 | 70 (60-80) | 35 (30-40) | 30 (20-40) | 15 (10-20) | 6 (1.75-8) | 2 (1-3) | 3 |")


def test_each_number_of_hosts_has_a_row_and_tasks_a_node_are_told() -> None:
    lines = table([measured(4, 9, 9, 9), measured(1, 9, 9, 9)])
    assert [line.split()[1] for line in lines[2:4]] == ["1", "4"]
    assert lines[-1] == "Tasks a node: cold 72 and 34 skipped, warm 42 and 45 skipped."
