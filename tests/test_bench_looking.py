"""`bench show` and `bench doctor` over a real node, one where nothing answers, and what lies in their inventory."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_commands import Bench
from harness import Node, free_port
from report_results import measured_run, node_facts, write

from bench.fake.handle import FakeHandle
from bench.running import runfile
from bench.running.samples import KIND, Run

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2, "N_CTX": 512}
KNOBS = {"parallel": 2}
QUICK = ("--requests", "4", "--max-tokens", "8", "--prompt-tokens", "48", "--concurrency", "1")
EXIT_FINDINGS = 3


@pytest.fixture
def bench(node: Node, engine: FakeHandle, tmp_path: Path) -> Bench:
    engine.turn(tokens_per_s=100)
    return Bench(tmp_path, pi1=node)


@pytest.fixture
def with_a_dead_one(node: Node, tmp_path: Path) -> Bench:
    return Bench(tmp_path, pi1=node, pi2=f"http://127.0.0.1:{free_port()}")


def test_a_measured_node_is_shown_with_its_speed_and_what_changed_since(bench: Bench) -> None:
    write(bench.results, measured_run("pi1", facts=node_facts(engine={"version": "0.1.0"})))
    (shown,) = bench.told("show")["nodes"]
    speed = shown["decode_tokens_per_s"]
    assert speed["low"] < speed["value"] < speed["high"]
    assert (shown["n"], shown["load"], shown["problem"]) == (40, "1 at once", "")
    assert shown["of_roofline"] == pytest.approx(speed["value"] * 1929912432 / 13.1e9)
    assert any(words.startswith("Ollama's version was 0.1.0") for words in shown["measured_otherwise"])


def test_a_run_has_the_node_measure_the_bandwidth_that_a_roofline_needs(bench: Bench) -> None:
    assert bench("run", *QUICK)[0] in (0, EXIT_FINDINGS)  # a busy machine may well make bench late
    newest = runfile.newest(bench.results, "pi1", KIND)
    assert newest is not None
    assert runfile.read(newest, Run).fingerprint["node"]["bandwidth"]["bytes_per_s"] > 1e8


def test_a_profile_is_shown_with_its_age_and_whether_it_is_in_force(bench: Bench) -> None:
    bench.give(N_CTX=512)
    (shown,) = bench.told("show")["nodes"]
    assert (shown["not_in_force"], shown["stale"]) == ("", [])
    assert shown["profile_age_s"] > 0
    bench.give(N_CTX=1024)
    (shown,) = bench.told("show")["nodes"]
    assert shown["not_in_force"].startswith("N_CTX is 512 on the node and should be 1024")


def test_a_node_that_does_not_answer_hides_no_other(with_a_dead_one: Bench) -> None:
    shown = with_a_dead_one.told("show", status=1)["nodes"]
    assert [(row["node"], row["model"] is None) for row in shown] == [("pi1", False), ("pi2", True)]
    assert "nothing answers" in shown[1]["problem"]
    assert with_a_dead_one("show", "--offline")[0] == 0


def test_a_healthy_node_has_no_findings(bench: Bench) -> None:
    bench.give(N_CTX=512)
    status, out, _ = bench("doctor")
    assert (status, out) == (
        0, "1 node, 0 measured: 0 findings; no speeds were compared, which takes 4 equal nodes measured alike\n"
    )  # fmt: skip


def test_a_profile_that_was_not_deployed_is_found_with_the_play_that_does_it(bench: Bench) -> None:
    bench.give(N_CTX=1024)
    status, out, _ = bench("doctor")
    assert status == EXIT_FINDINGS
    assert out.startswith("pi1: not deployed: N_CTX is 512 on the node and should be 1024")
    inventory = bench.inventory / "hosts.yml"
    assert f"remedy: ansible-playbook -i {inventory} ansible/profile.yml --limit pi1,localhost\n" in out


def test_a_file_that_is_yaml_and_no_profile_is_told_once_as_its_nodes_problem(bench: Bench) -> None:
    path = bench.give(N_CTX=512)
    path.write_text("tuned_profile: 5\n")
    (finding,) = bench.told("doctor", status=EXIT_FINDINGS)["findings"]
    assert (finding["kind"], finding["node"]) == ("no profile", "pi1")
    assert f"{path} is no profile of bench" in finding["text"]
    (shown,) = bench.told("show", status=1)["nodes"]
    assert f"{path} is no profile of bench" in shown["profile_problem"]
    for command in ("show", "doctor", "tune"):
        _, out, err = bench(command)
        assert f"{out}{err}".count("is no profile of bench") == 1


def test_a_node_that_does_not_answer_is_a_finding_of_its_own(with_a_dead_one: Bench) -> None:
    told = with_a_dead_one.told("doctor", status=1)
    assert [(each["kind"], each["node"]) for each in told["findings"]] == [("unreachable", "pi2")]
    assert (told["nodes"], told["compared_speeds"]) == (["pi1", "pi2"], 0)
