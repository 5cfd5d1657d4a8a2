"""A report is one file that loads nothing, and says what the results say."""

from __future__ import annotations

import re
from dataclasses import replace
from statistics import median

import msgspec
from report_page import node_of, page_of
from report_results import FASTER, SLOWER, TOKENS, UNDERVOLTAGE, measured_run, node_facts, tuned, verified

from bench.report.parts import interval, share
from bench.running.run_table import number
from bench.running.samples import Run
from bench.statistics.comparison import Verdict
from bench.tuning.blocks import BlockRecord
from bench.tuning.objective import Figures
from bench.tuning.space import Settings
from bench.tuning.tune_file import TuneRun
from bench.tuning.verify_file import Round, VerifyRun


def test_it_loads_nothing_from_anywhere_and_runs_no_script() -> None:
    page = page_of(node_of(measured_run(), tuned(), verified()))
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image"}
        assert not {"src", "srcset", "style", "xlink:href", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    assert not re.search(r"url\(|@import|https?:", page.html)
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policies[0]).startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_a_link_leads_to_each_nodes_section() -> None:
    page = page_of(node_of(measured_run(), name="pi1"), node_of(measured_run("pi2"), name="pi2"))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = {str(attributes["href"])[1:] for _, attributes in page.elements if "href" in attributes}
    assert ids == links == {"node-1", "node-2"}


def test_without_results_it_says_how_to_get_some() -> None:
    assert "bench run" in page_of().text


def test_the_fleets_table_has_each_nodes_speed_with_interval_and_n() -> None:
    node = node_of(measured_run(requests=40))
    assert node.shown
    assert node.shown.single
    decode = node.shown.single[1]
    assert decode.p50.low is not None
    text = page_of(node).text
    assert f"{number(decode.p50.value)} {number(decode.p50.low)} to" in text
    assert "n\N{NO-BREAK SPACE}40" in text


def test_a_node_that_says_nothing_of_itself_is_shown_with_what_was_measured() -> None:
    text = page_of(node_of(measured_run(facts={}), name="x86")).text
    assert "not told" in text
    assert "Throughput under load" in text


def test_an_invalid_run_is_marked_with_reason_and_remedy() -> None:
    page = page_of(node_of(measured_run(marks=[UNDERVOLTAGE])))
    assert "Needs a look" in page.text
    assert page.text.count(UNDERVOLTAGE.reason) >= 2
    assert "Use the 27 W supply" in page.text
    assert "No run of this node is valid" in page.text
    assert "bar unusable" in page.classes()


def test_an_older_valid_run_stands_for_the_node_and_the_newer_ones_mark_is_told() -> None:
    good, bad = measured_run(day=1, speed=5.0), measured_run(day=2, speed=2.0, marks=[UNDERVOLTAGE])
    node = node_of(good, bad)
    assert node.shown is node.runs[0]
    assert f"A newer run, {bad.id}, is not used" in page_of(node).text


def test_throttling_during_the_run_is_named() -> None:
    low = node_facts(throttling={"bits": "0x4", "now": ["throttled"], "since_boot": []})
    text = page_of(node_of(measured_run(facts=low))).text
    assert "the board reported: throttled (cool the board" in text


def test_all_percentiles_of_each_stage_stand_in_tables() -> None:
    page = page_of(node_of(measured_run(loads=(1, 2))))
    labels = [attributes.get("data-label") for _, attributes in page.elements if attributes.get("data-label")]
    for name in ("p50", "p90", "p95", "p99"):
        assert labels.count(name) == 2 * 5  # two stages; TTFT, TPOT, E2E, ITL, queue


def test_a_change_of_settings_is_marked_in_the_history() -> None:
    new = node_facts(settings={**node_facts()["settings"], "N_THREADS": 3})
    page = page_of(node_of(measured_run(day=1), measured_run(day=2, facts=new)))
    assert "N_THREADS 4 → 3" in page.text
    assert page.classes().count("change") == 1
    assert "joint" not in page.classes()


def test_a_single_run_has_no_history() -> None:
    assert "History" not in page_of(node_of(measured_run())).text


def test_a_verification_tells_its_verdict_and_what_followed() -> None:
    text = page_of(node_of(measured_run(), verified(verdict=SLOWER, restored=True))).text
    assert f"the newest profile that was verified is {SLOWER}" in text
    assert "the previous profile was brought back" in text


def test_a_failed_run_without_a_single_answer_is_told_of() -> None:
    run = measured_run(loads=(), status="failed", problem="pi1: nothing answers on http://pi1.local:8000.")
    text = page_of(node_of(run)).text
    assert "nothing answers on" in text
    assert "Nothing was measured in it." in text


def test_a_file_that_cannot_be_read_is_told_of() -> None:
    assert "x.json is no run" in page_of(unreadable=(("x.json", "x.json is no run"),)).text


def test_of_a_large_fleet_only_nodes_that_need_a_look_are_unfolded() -> None:
    run, bad = measured_run(loads=(1,), requests=4), measured_run(loads=(1,), requests=4, marks=[UNDERVOLTAGE])
    nodes = [node_of(bad if number == 3 else run, name=f"pi{number}") for number in range(8)]
    sections = [a for _, a in page_of(*nodes).elements if a.get("class") == "node"]
    assert ["open" in a for a in sections] == [number == 3 for number in range(8)]


def test_it_says_how_long_answers_were() -> None:
    node = node_of(measured_run(day=1), measured_run(day=2))
    assert f"128 / {TOKENS}" in page_of(node).text


def test_one_streams_speed_is_told_as_a_share_of_what_the_memory_allows() -> None:
    node = node_of(measured_run(speed=3.39, facts=node_facts(bandwidth={"bytes_per_s": 2 * 3.39 * 1929912432})))
    assert "50% of 6.78" in page_of(node).text


def test_several_streams_have_no_roofline() -> None:
    assert "% of" not in page_of(node_of(measured_run(loads=(2, 4)))).text


def profile_cell(*proofs: VerifyRun) -> str:
    """What the fleet's table says of the profile of a node that a tune proposed one for."""
    run, tune = measured_run(), tuned("pi1", "smooth")
    assert tune.profile
    tune.profile.env.update(N_CTX=1024, N_THREADS=3)
    html = page_of(node_of(run, tune, *proofs)).html
    return html.partition('data-label="Profile"')[2].partition("</td>")[0]


def test_a_profile_is_shown_with_what_verifying_it_said() -> None:
    assert f'verified: faster, <span class="whole">{share(FASTER.change)}</span>' in profile_cell(verified())
    assert "verified" not in profile_cell()


def test_a_verification_of_other_settings_or_of_before_proves_no_profile() -> None:
    assert "verified" not in profile_cell(msgspec.structs.replace(verified(), new=Settings.of(N_CTX=2048)))
    assert "verified" not in profile_cell(verified(day=4))


def test_an_interim_look_of_a_verification_is_no_verdict() -> None:
    early = Verdict("same", 0.01, (-0.02, 0.04), 0.3, 0.01, 12, False)
    slower = msgspec.structs.replace(verified(verdict=SLOWER), verdict=replace(SLOWER, is_final=False))
    interrupted = verified(verdict=early)
    assert "verified" not in profile_cell(interrupted)
    text = page_of(node_of(measured_run(), interrupted, slower)).text
    assert str(early) not in text
    assert str(SLOWER) not in text
    assert text.count("no verdict yet") == 2


def test_a_profile_of_which_no_look_tells_is_not_called_in_force_nor_not() -> None:
    tune = tuned("pi1", "smooth")
    standing = replace(node_of(measured_run(day=1)), profile=tune.profile)
    assert "not known whether in force" in page_of(standing).text
    assert "in force" not in profile_cell()


def test_what_a_load_sustained_stands_beside_its_burst() -> None:
    def told(run: Run) -> str:
        return page_of(node_of(run)).text.partition("How to read it")[0]

    long, short = measured_run(loads=(1,)), measured_run(loads=(1,), requests=5)
    stage = node_of(long).runs[0].outcome.stages[0]
    assert stage.burst
    assert stage.sustained
    assert f"{number(stage.sustained.value)} {interval(stage.sustained.low, stage.sustained.high)}" in told(long)
    assert f"burst {number(stage.burst.value)} ({interval(stage.burst.low, stage.burst.high)})" in told(long)
    assert "burst" not in told(short)


def told_by(*found: TuneRun | VerifyRun) -> str:
    for each in found:
        each.fingerprint = {"model": "qwen2.5:3b", "node": node_facts()}
    return page_of(node_of(*found)).text


def rounds(old: float, new: float) -> list[Round]:
    def block(settings: Settings, rate: float) -> BlockRecord:
        figures = Figures(decode_tokens_per_s=rate, ttft_ms=1.0, tpot_ms=1.0)
        return BlockRecord(settings=settings, status="measured", began_s=0.0, cost_s=1.0, figures=figures)

    return [Round(block(Settings.of(N_CTX=512), old), block(Settings.of(N_CTX=1024), new)) for _ in range(12)]


def test_a_node_that_was_only_tuned_is_shown_by_its_winners_blocks() -> None:
    tune = tuned()
    assert tune.outcome
    assert tune.outcome.winner
    assert tune.outcome.winner.figures
    text = told_by(tune)
    own = [
        b.figures.decode_tokens_per_s for b in tune.blocks if b.settings == tune.outcome.winner.settings and b.figures
    ]
    assert f"{number(median(own))} no interval · n\N{NO-BREAK SPACE}{len(own)} blocks of bench tune" in text
    assert "% of 6.79" in text
    assert "Raspberry Pi 5" in text
    assert "1 node, 0 runs, 1 tune, 0 verifications" in text


def test_a_verification_that_is_newer_stands_for_a_node_by_the_profile_that_it_left() -> None:
    proof = verified(rounds=rounds(5.0, 6.0))
    assert "6.00 6.00 to 6.00 · n\N{NO-BREAK SPACE}12 blocks of bench verify" in told_by(tuned(), proof)
    back = verified(rounds=rounds(5.0, 4.0), verdict=SLOWER, restored=True)
    assert "5.00 5.00 to 5.00" in told_by(tuned(), back)


def test_blocks_of_several_streams_are_no_speed_of_one() -> None:
    tune = tuned()
    tune.blocks = [msgspec.structs.replace(block, streams=2) for block in tune.blocks]
    assert "blocks of bench tune" not in told_by(tune)


def test_a_run_stands_before_any_blocks() -> None:
    assert "blocks of bench" not in page_of(node_of(measured_run(), tuned())).text
