"""The gateway benchmark's pure parts: what a figure, a pair, a verdict is; how the client reads an answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from bench.gateway import floor, processes
from bench.gateway.__main__ import PARTS, QUESTIONS, ask, turned
from bench.gateway.client import Exchange, is_whole
from bench.gateway.figures import Measure, Spread, judge, judge_all, number, percentile, table
from bench.gateway.measuring import Measures, added_ms, made_after, over_the_engine
from bench.gateway.subjects import Subject
from bench.gateway.targets import all_complete, exact_burst, verdicts


class TestFigures:
    @pytest.mark.parametrize(("share", "value"), [(0, 1), (0.5, 2.5), (1, 4), (0.75, 3.25)])
    def test_a_percentile_lies_between_its_neighbours(self, share: float, value: float) -> None:
        assert percentile([4, 1, 3, 2], share) == value

    def test_one_value_is_every_percentile(self) -> None:
        assert percentile([7.0], 0.99) == 7.0

    def test_ratios_are_taken_within_rounds(self) -> None:
        measure = Measure("delay", "ms")
        for slow in (1, 10):  # the second round hit both
            measure.add("floor", [2 * slow])
            measure.add("appliance", [3 * slow])
        assert measure.paired("appliance", "floor", "ratio") == [1.5, 1.5]

    def test_differences_are_taken_within_rounds(self) -> None:
        measure = Measure("PSS", "MiB")
        measure.add("floor", [40.0])
        measure.add("appliance", [52.0])
        assert measure.paired("appliance", "floor", "difference") == [12.0]

    def test_a_floor_of_nothing_gives_no_ratio(self) -> None:
        measure = Measure("tokens after", "tokens")
        measure.add("floor", [0.0])
        measure.add("appliance", [0.0])
        assert measure.paired("appliance", "floor", "ratio") == []

    def test_added_ttft_is_less_the_engines_own_median_of_the_round(self) -> None:
        measure = Measure("added TTFT", "ms")
        for own in (0.1, 0.3):
            measure.add("engine", [own, own, 9.0])
            measure.add("floor", [1.0 + own])
        assert over_the_engine(measure).samples == {"floor": [[pytest.approx(1.0)], [pytest.approx(1.0)]]}

    @pytest.mark.parametrize(
        ("value", "text"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (2.0, "2")]
    )
    def test_numbers_have_three_digits(self, value: float, text: str) -> None:
        assert number(value) == text

    def test_the_table_shows_spread_ratio_and_n(self) -> None:
        measure = Measure("delay", "ms")
        for value in (1.0, 3.0):
            measure.add("floor", [value])
            measure.add("appliance", [value * 2])
        head, row = table([measure], ["floor", "appliance"], "appliance", "floor")
        assert row.split() == ["delay,", "ms", "2", "(1-3)", "4", "(2-6)", "2.00", "(2.00-2.00)", "2"]
        assert len(head) == len(row)


class TestVerdicts:
    def test_the_median_of_the_rounds_decides(self) -> None:
        assert judge("x", [1.0, 1.1, 9.0], 1.2).is_reached is True
        assert judge("x", [1.0, 1.3, 1.4], 1.2).is_reached is False

    def test_rounds_on_both_sides_are_said(self) -> None:
        assert "both sides" in judge("x", [1.0, 1.1, 9.0], 1.2).figure
        assert "both sides" not in judge("x", [1.0, 1.1], 1.2).figure

    def test_nothing_measured_is_no_verdict(self) -> None:
        assert judge("x", [], 1).line().startswith("not measured")
        assert {verdict.is_reached for verdict in verdicts(Measures())} == {None}

    def test_a_bound_for_all_is_broken_by_one(self) -> None:
        assert judge_all("x", [0.0, 51.0], 50).is_reached is False

    @pytest.mark.parametrize(("with_header", "reached"), [(52, True), (51, False)])
    def test_a_burst_is_judged_exactly(self, with_header: int, reached: bool) -> None:
        measures = Measures()
        measures.bursts["appliance"] = [{"answered": 12, "refused": 52, "with Retry-After": with_header}]
        assert exact_burst(measures).is_reached is reached

    def test_one_lost_stream_fails_the_crowd(self) -> None:
        measures = Measures()
        measures.completed[500].add("appliance", [500])
        measures.completed[500].add("appliance", [499])
        assert all_complete(measures, 500).is_reached is False

    def test_every_target_is_judged_from_a_full_run(self) -> None:
        measures = Measures()
        for measure in measures.all():
            for subject in ("engine", "floor", "appliance"):
                measure.add(subject, [1.0])
        measures.bursts["appliance"] = [{"answered": 12, "refused": 52, "with Retry-After": 52}]
        missing = [v.target for v in verdicts(measures) if v.is_reached is None]
        assert missing == ["added TTFT p50 <= 1.5 x floor"]  # no ratio to a floor that adds nothing


class TestClient:
    HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    @pytest.fixture
    def exchange(self) -> Iterator[Exchange]:
        with socket.socket() as sock:
            yield Exchange(sock)

    @pytest.mark.parametrize(
        "token",
        [
            b'{"model":"m","message":{"role":"assistant","content":" 123456789012"},"done":false}\n',
            b'event: token\ndata: {"token": " 123456789012", "done": false}\n\n',
        ],
    )
    def test_it_reads_the_time_of_each_token_however_it_is_cut(self, exchange: Exchange, token: bytes) -> None:
        data = self.HEAD + token * 3
        for i in range(len(data)):
            exchange.take(data[i : i + 1], i)
        assert [sent for _, sent in exchange.tokens] == [123456789012] * 3
        assert exchange.ended == ""

    @pytest.mark.parametrize(
        "end", [b'"content":""},"done":true,"done_reason":"stop"}\n', b'event: done\ndata: {"done": true}\n\n']
    )
    def test_done_ends_it(self, exchange: Exchange, end: bytes) -> None:
        exchange.take(self.HEAD + end, 5)
        assert (exchange.ended, exchange.ended_ns) == ("done", 5)

    def test_a_refusal_has_its_status_and_header(self, exchange: Exchange) -> None:
        exchange.take(b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 5\r\n\r\n{}", 5)
        assert (exchange.status, exchange.ended, exchange.has_header("Retry-After")) == (429, "answered", True)

    def test_a_plain_answer_is_whole_with_its_length(self) -> None:
        assert is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert not is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")

    def test_added_time_is_without_the_engines(self, exchange: Exchange) -> None:
        exchange.sent_ns, exchange.tokens = 1_000_000, [(9_000_000, 8_000_000)]
        assert added_ms(exchange, {"received_ns": 2_000_000, "first_token_ns": 8_000_000}) == 2.0

    def test_tokens_after_a_leaving_are_counted(self) -> None:
        assert made_after({"last_token_ns": [1, 2, 3]}, 2) == 1


def test_the_order_of_subjects_turns() -> None:
    assert [turned("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]


def test_every_question_has_its_answer() -> None:
    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return lambda *given: asked.append(name)

    subject = Subject("floor", 1, "/live")
    for question in set(QUESTIONS) - {"memory", "ready"}:
        for part in PARTS.get(question, (question,)):
            asked: list[str] = []
            ask(Recorder(), part, subject, subject)  # type: ignore[arg-type]
            assert len(asked) == 1


def test_the_client_of_each_subject_sends_its_length() -> None:
    for name in ("engine", "appliance"):
        head, _, body = Subject(name, 1, "/", key="pk_1").request(3).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head


def test_a_family_has_cpu_time_and_memory() -> None:
    assert os.getpid() in processes.family(os.getpid())
    assert processes.cpu_ns([os.getpid()]) > 0
    assert processes.pss_mib([os.getpid()]) > 1


def test_the_floor_has_two_routes() -> None:
    assert floor.app._router.find("/api/chat")
    assert floor.app._router.find("/live")


def test_a_spread_is_median_and_ends() -> None:
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3, 3)
