"""A client that leaves frees its place at once, and its generation stops in the engine.

SSE_PING_S is a minute here: nothing is written that could fail, so only the watch over the socket notices.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from harness import Exchange, Node, post, wait_until

from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 1, "MAX_QUEUE_SIZE": 4, "SSE_PING_S": 60, "CLIENT_TIMEOUT_S": 1}
PIPELINED = b"GET /live HTTP/1.1\r\nHost: node\r\n\r\n"

departures = pytest.mark.parametrize("departure", [Exchange.leave, Exchange.reset, Exchange.half_close])
streams = pytest.mark.parametrize("stream", [True, False])
trailing = pytest.mark.parametrize("trailing", ["", "in one piece", "later"])


def last_seen(engine: FakeHandle) -> dict[str, Any]:
    seen: dict[str, Any] = engine.seen()["requests"][-1]
    return seen


def wait_until_generating(engine: FakeHandle, tokens: int = 0) -> None:
    def is_generating() -> bool:
        seen = engine.seen()
        return seen["running"] == 1 and seen["requests"][-1]["tokens"] >= tokens

    wait_until(is_generating, "the engine generates")


def send(node: Node, trailing: str, **fields: Any) -> Exchange:
    """A generation, with a pipelined request behind it: in the server's buffer already, or in the socket."""
    return node.generate(trailing=PIPELINED if trailing == "in one piece" else b"", **fields)


def send_later(node: Node, exchange: Exchange, trailing: str) -> None:
    if trailing == "later":
        exchange.send(PIPELINED)
        node.health()  # whoever watches the socket has seen them now


def wait_until_stopped(engine: FakeHandle) -> None:
    wait_until(lambda: last_seen(engine)["ended"] == "client_gone", "the engine was told to stop")


@departures
@streams
@trailing
def test_in_a_silent_prefill_it_stops_the_engine(
    node: Node, engine: FakeHandle, departure: Any, stream: bool, trailing: str
) -> None:
    engine.turn(fault="hang_first")
    exchange = send(node, trailing, stream=stream)
    wait_until_generating(engine)
    send_later(node, exchange, trailing)
    departure(exchange)
    wait_until_stopped(engine)
    node.wait_until_idle()
    assert last_seen(engine)["tokens"] == 0


@departures
@streams
def test_in_a_silence_between_tokens_it_stops_the_engine(
    node: Node, engine: FakeHandle, departure: Any, stream: bool
) -> None:
    engine.turn(fault="hang", after=2)
    exchange = node.generate(stream=stream)
    wait_until_generating(engine, tokens=2)
    departure(exchange)
    wait_until_stopped(engine)
    node.wait_until_idle()


@departures
@trailing
def test_in_the_flow_of_tokens_it_stops_the_engine(
    node: Node, engine: FakeHandle, departure: Any, trailing: str
) -> None:
    engine.turn(tokens_per_s=50)
    exchange = send(node, trailing, max_tokens=2048)
    exchange.next("token")
    send_later(node, exchange, trailing)
    departure(exchange)
    wait_until_stopped(engine)
    node.wait_until_idle()


@departures
@streams
@trailing
def test_in_the_line_it_frees_the_place(
    node: Node, engine: FakeHandle, departure: Any, stream: bool, trailing: str
) -> None:
    engine.turn(fault="hang_first", faults=1)
    node.generate()
    wait_until_generating(engine)
    waiting = send(node, trailing, stream=stream)
    node.wait_until_busy(running=1, waiting=1)
    send_later(node, waiting, trailing)
    departure(waiting)
    node.wait_until_busy(running=1, waiting=0)
    assert engine.seen()["generations"] == 1


def test_the_next_in_line_gets_the_slot(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first", faults=1)
    leaving = node.generate()
    wait_until_generating(engine)
    following = node.generate(max_tokens=1)
    node.wait_until_busy(running=1, waiting=1)
    leaving.leave()
    assert following.next("done")


def test_while_the_model_loads_the_load_goes_on(node: Node, engine: FakeHandle) -> None:
    engine.turn(loaded=False, load_s=1.0)
    node.wait_until_unloaded()
    exchange = node.generate()
    wait_until_generating(engine)  # the load itself
    exchange.leave()
    node.wait_until_idle()
    wait_until(lambda: last_seen(engine)["ended"] == "done", "the load comes to its end")
    assert (engine.seen()["generations"], engine.seen()["loads"]) == (1, 1)


@pytest.mark.parametrize("trailing", ["in one piece", "later"])
def test_a_pipelined_request_is_answered_after_the_stream(node: Node, engine: FakeHandle, trailing: str) -> None:
    engine.turn(tokens_per_s=20)
    exchange = send(node, trailing, max_tokens=8)
    events = exchange.events()
    first = next(events)
    send_later(node, exchange, trailing)
    assert [event.name for event in (first, *events)] == ["token"] * 8 + ["done"]
    assert exchange.following().json() == {"status": "alive"}


def test_before_its_body_is_whole_nothing_is_generated(node: Node, engine: FakeHandle) -> None:
    before = engine.seen()["generations"]
    whole = post("/generate", {"X-API-Key": node.key, "Content-Type": "application/json"}, b'{"prompt": "Why?"}')
    node.open(whole[:-5]).leave()
    assert node.answer(max_tokens=1)
    assert engine.seen()["generations"] == before + 1


def test_one_that_reads_nothing_loses_its_slot(node: Node, engine: FakeHandle) -> None:
    engine.turn(text="long")
    node.generate(max_tokens=2048, receive_buffer=4096)  # 20 MB, more than any socket's buffers hold
    wait_until_generating(engine)
    wait_until_stopped(engine)
    node.wait_until_idle()
    assert "Traceback" not in node.log


def test_the_tokens_made_after_it_left_are_counted(node: Node, engine: FakeHandle) -> None:
    before = node.metric("appliance_tokens_after_client_left_total")
    engine.turn(text="long")
    exchange = node.generate(max_tokens=2048, receive_buffer=4096)
    made: list[int] = []

    def is_blocked() -> bool:
        """All buffers up to the client's are full, so the engine is ahead of what the service has read."""
        made.append(last_seen(engine)["tokens"])
        return len(made) > 20 and made[-20] == made[-1] > 0

    wait_until_generating(engine)
    wait_until(is_blocked, "the engine makes no more tokens")
    exchange.reset()
    wait_until_stopped(engine)
    node.wait_until_idle()
    assert 0 < node.metric("appliance_tokens_after_client_left_total") - before < made[-1]


def test_it_is_logged_and_counted_as_what_it_is(node: Node, engine: FakeHandle) -> None:
    line = 'appliance_generations_total{outcome="client_gone"}'
    before = node.metric(line)
    engine.turn(fault="hang_first")
    exchange = node.generate(headers={"X-Request-ID": "the-one-that-left"})
    wait_until_generating(engine)
    exchange.leave()
    wait_until(lambda: node.metric(line) == before + 1, "the metric counts it")
    assert "id=the-one-that-left" in node.log
    assert "outcome=client_gone" in node.log


def test_many_leaving_at_once_leave_no_slot_taken(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first")
    exchanges = [node.generate() for _ in range(5)]
    node.wait_until_busy(running=1, waiting=4)
    for exchange in exchanges:
        exchange.reset()
    node.wait_until_idle()
    engine.turn(fault="")
    assert node.answer(max_tokens=1)


def test_a_connection_that_only_says_hello_takes_nothing(node: Node) -> None:
    with socket.create_connection(("127.0.0.1", node.port)) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\n")
        assert node.health()["active_requests"] == 0


def test_one_that_reads_nothing_of_a_public_answer_loses_its_connection(node: Node) -> None:
    pages = b"GET /openapi.json HTTP/1.1\r\nHost: node\r\n\r\n" * 800  # more than any socket's buffers hold
    exchange = node.open(pages, receive_buffer=4096)
    ends = f":{node.port:04X} ", f":{exchange.own_port:04X} 01 "  # the service's, the client's, "established"

    def is_connected() -> bool:
        return any(all(end in row for end in ends) for row in Path("/proc/net/tcp").read_text().splitlines())

    assert is_connected()
    wait_until(lambda: not is_connected(), "the connection is gone")
    assert "Traceback" not in node.log
