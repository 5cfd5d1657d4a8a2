"""The fake engine: Ollama's bytes, its slots and faults, and that it notices a client's leaving.

The bytes of the first part are captures of Ollama 0.33.0-rc2.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.fake import ollama_bytes as wire
from bench.fake.answer import count_prompt_tokens, inside_a_character
from bench.fake.handle import FakeHandle, running_fake_engine

MODEL = "smollm2:135m"
DATE = "Sun, 22 Nov 2026 19:36:12 GMT"


class TestBytes:
    def test_the_head_goes_with_the_first_record_of_generate(self) -> None:
        line = wire.token_line("generate", MODEL, "2026-11-22T19:36:12.723815879Z", "The")
        assert wire.head(200, DATE, wire.NDJSON) + wire.chunk(line) == (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
            b"Date: Sun, 22 Nov 2026 19:36:12 GMT\r\n"
            b'Transfer-Encoding: chunked\r\n\r\n65\r\n{"model":"smollm2:135m",'
            b'"created_at":"2026-11-22T19:36:12.723815879Z","response":"The","done":false}\n\r\n'
        )

    def test_a_chat_record_holds_a_message(self) -> None:
        line = wire.token_line("chat", MODEL, "2026-11-22T19:36:13.431657235Z", ' "')
        assert wire.chunk(line) == (
            b'83\r\n{"model":"smollm2:135m","created_at":"2026-11-22T19:36:13.431657235Z",'
            b'"message":{"role":"assistant","content":" \\""},"done":false}\n\r\n'
        )

    def test_the_final_record_ends_with_the_metrics(self) -> None:
        metrics = {
            "total_duration": 146614510,
            "load_duration": 984519,
            "prompt_eval_count": 10,
            "prompt_eval_duration": 36119000,
            "eval_count": 16,
            "eval_duration": 105954000,
        }
        final = wire.final_record("chat", MODEL, "2026-11-22T19:36:13.523705345Z", "length", metrics)
        assert wire.record(final) == (
            b'129\r\n{"model":"smollm2:135m","created_at":"2026-11-22T19:36:13.523705345Z",'
            b'"message":{"role":"assistant","content":""},"done":true,"done_reason":"length",'
            b'"total_duration":146614510,"load_duration":984519,"prompt_eval_count":10,'
            b'"prompt_eval_duration":36119000,"eval_count":16,"eval_duration":105954000}\n\r\n'
        )

    def test_a_load_answer_has_no_metrics(self) -> None:
        final = wire.final_record("generate", MODEL, "2026-11-22T19:37:44.477732288Z", "load")
        assert wire.answer(200, "Sun, 22 Nov 2026 19:37:44 GMT", final) == (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
            b"Date: Sun, 22 Nov 2026 19:37:44 GMT\r\nContent-Length: 117\r\n\r\n"
            b'{"model":"smollm2:135m","created_at":"2026-11-22T19:37:44.477732288Z","response":"",'
            b'"done":true,"done_reason":"load"}'
        )

    def test_an_error_before_the_first_record_keeps_the_framing_of_the_stream(self) -> None:
        message = (
            '{"error":{"code":400,"message":"request (900 tokens) exceeds the available context size '
            '(512 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":900,'
            '"n_ctx":512}}'
        )
        assert wire.stream_error(400, "Sun, 22 Nov 2026 19:37:30 GMT", message) == (
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            b"Date: Sun, 22 Nov 2026 19:37:30 GMT\r\n"
            b'Transfer-Encoding: chunked\r\n\r\ndb\r\n{"error":"{\\"error\\":{\\"code\\":400,'
            b'\\"message\\":\\"request '
            b'(900 tokens) exceeds the available context size (512 tokens), try increasing it\\",'
            b'\\"type\\":\\"exceed_context_size_error\\",\\"n_prompt_tokens\\":900,\\"n_ctx\\":512}}"}\r\n0\r\n\r\n'
        )

    def test_a_last_answer_says_close_before_the_coding(self) -> None:
        assert wire.closing(wire.head(200, "Sun, 22 Nov 2026 19:37:53 GMT", wire.NDJSON)) == (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
            b"Date: Sun, 22 Nov 2026 19:37:53 GMT\r\n"
            b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    @pytest.mark.parametrize(
        ("unix_ns", "text"),
        [
            (1795376172_723815879, "2026-11-22T19:36:12.723815879Z"),
            (1795376172_720000000, "2026-11-22T19:36:12.72Z"),
            (1795376172_000000000, "2026-11-22T19:36:12Z"),
        ],
    )
    def test_time_stamps_lose_trailing_zeros_as_in_go(self, unix_ns: int, text: str) -> None:
        assert wire.Dates().rfc3339_nano(unix_ns) == text

    def test_json_is_escaped_as_go_does(self) -> None:
        assert wire.go_json("<b>&\u2028 é 重") == '"\\u003cb\\u003e\\u0026\\u2028 é 重"'

    def test_a_cut_inside_a_character_leaves_invalid_utf8(self) -> None:
        data = "a重".encode()
        with pytest.raises(UnicodeDecodeError):
            data[: inside_a_character(data)].decode()

    def test_a_prompt_counts_its_template_too(self) -> None:
        assert count_prompt_tokens({"messages": [{"role": "user", "content": "x" * 40}]}) == 18


def body_of(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Why?"}]
    return {"model": "qwen2.5:3b", "messages": messages, "options": {"num_predict": 5}, **fields}


class Client:
    """One raw connection to the fake."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.got = sock, b""

    def __del__(self) -> None:
        self.sock.close()

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Client:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        self.sock.sendall(head.encode() + data)
        return self

    def until(self, end: bytes) -> bytes:
        while not self.got.endswith(end):
            data = self.sock.recv(65536)
            if not data:
                break
            self.got += data
        return self.got

    def records(self) -> list[dict[str, Any]]:
        chunks = self.until(wire.LAST_CHUNK).partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2]
        return [json.loads(line) for line in b"".join(chunks).splitlines()]


def connect(engine: FakeHandle) -> Client:
    return Client(socket.create_connection(("127.0.0.1", engine.port), timeout=10))


@pytest.fixture(scope="module")
def engine_process() -> Iterator[FakeHandle]:
    with running_fake_engine() as handle:
        yield handle


@pytest.fixture
def engine(engine_process: FakeHandle) -> FakeHandle:
    engine_process.reset()
    return engine_process


def chat(engine: FakeHandle, **fields: Any) -> Client:
    return connect(engine).send("POST", "/api/chat", body_of(**fields))


def wait_until(fact: Callable[[], bool], tries: int = 2000) -> None:
    assert any(fact() for _ in range(tries))


def last_seen(engine: FakeHandle) -> dict[str, Any]:
    request: dict[str, Any] = engine.seen()["requests"][-1]
    return request


@pytest.mark.tier2
class TestProcess:
    def test_it_answers_as_many_tokens_as_asked_for(self, engine: FakeHandle) -> None:
        records = chat(engine).records()
        assert [r["done"] for r in records] == [False] * 5 + [True]
        assert records[-1]["eval_count"] == 5

    def test_it_says_stop_when_the_answer_is_shorter_than_allowed(self, engine: FakeHandle) -> None:
        engine.turn(tokens=3)
        assert chat(engine).records()[-1]["done_reason"] == "stop"

    def test_it_keeps_the_connection_for_the_next_request(self, engine: FakeHandle) -> None:
        client = chat(engine)
        client.until(wire.LAST_CHUNK)
        client.got = b""
        assert client.send("GET", "/").until(b"running").startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain")

    def test_head_has_the_length_and_no_body(self, engine: FakeHandle) -> None:
        client = connect(engine).send("HEAD", "/").send("GET", "/api/version")
        assert b"Content-Length: 17\r\n\r\nHTTP/1.1 200 OK" in client.until(b"}")

    def test_it_refuses_a_foreign_host(self, engine: FakeHandle) -> None:
        client = connect(engine)
        client.sock.sendall(b"GET / HTTP/1.1\r\nHost: evil.example.com\r\n\r\n")
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 403 Forbidden\r\nDate: ")

    def test_it_holds_back_what_exceeds_its_slots(self, engine: FakeHandle) -> None:
        engine.turn(parallel=2, prefill_s=0.05)
        clients = [chat(engine) for _ in range(5)]
        assert [client.records()[-1]["done"] for client in clients] == [True] * 5
        assert (engine.seen()["peak_running"], engine.seen()["peak_waiting"]) == (2, 3)

    def test_it_loads_again_when_load_time_options_change(self, engine: FakeHandle) -> None:
        for num_ctx in (512, 512, 1024):
            chat(engine, options={"num_ctx": num_ctx, "num_predict": 1}).records()
        assert engine.seen()["loads"] == 1

    @pytest.mark.parametrize("knobs", [{"prefill_s": 60.0}, {"tokens_per_s": 0.01}, {"fault": "hang_first"}])
    def test_it_notices_a_leaving_client_while_silent(self, engine: FakeHandle, knobs: dict[str, Any]) -> None:
        engine.turn(**knobs)
        client = chat(engine)
        wait_until(lambda: engine.state()["running"] > 0)
        client.sock.close()
        wait_until(lambda: engine.state()["running"] == 0)
        assert last_seen(engine)["ended"] == "client_gone"

    def test_it_notices_a_leaving_client_that_waits_for_a_slot(self, engine: FakeHandle) -> None:
        engine.turn(parallel=1, prefill_s=60)
        holder, waiter = chat(engine), chat(engine)
        wait_until(lambda: engine.state()["waiting"] > 0)
        waiter.sock.close()
        wait_until(lambda: engine.state()["waiting"] == 0)
        holder.sock.close()
        assert last_seen(engine)["ended"] == "client_gone"

    @pytest.mark.parametrize(
        ("fault", "end"),
        [
            ("close", b"}\n\r\n"),
            ("no_done", b"}\n\r\n0\r\n\r\n"),
            ("error", b'logs for details"}\n\r\n0\r\n\r\n'),
        ],
    )
    def test_it_ends_a_stream_without_done(self, engine: FakeHandle, fault: str, end: bytes) -> None:
        engine.turn(fault=fault, after=2)
        got = chat(engine).until(b"never")[-len(end) :] if fault == "close" else chat(engine).until(end)
        assert got.endswith(end)
        assert b'"done":true' not in got
        assert (last_seen(engine)["ended"], last_seen(engine)["tokens"]) == (fault, 2)

    def test_it_dies_by_reset(self, engine: FakeHandle) -> None:
        engine.turn(fault="reset", after=1)
        with pytest.raises(ConnectionResetError):
            chat(engine).until(b"never")

    @pytest.mark.parametrize(
        ("fault", "status"), [("404", b"404"), ("500", b"500"), ("503", b"503"), ("too_long", b"400")]
    )
    def test_it_answers_statuses(self, engine: FakeHandle, fault: str, status: bytes) -> None:
        engine.turn(fault=fault)
        assert chat(engine, stream=False).until(b"}").startswith(b"HTTP/1.1 " + status)

    def test_it_refuses_a_long_prompt_when_it_may_not_cut(self, engine: FakeHandle) -> None:
        fields = {"options": {"num_ctx": 16}, "messages": [{"role": "user", "content": "x" * 100}]}
        assert chat(engine, **fields, truncate=False).until(b"0\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request")
        assert chat(engine, **fields).until(b"0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")

    def test_a_fault_can_be_over_after_some_requests(self, engine: FakeHandle) -> None:
        engine.turn(fault="503", faults=1)
        first, second = chat(engine), chat(engine)
        assert first.until(b"}").startswith(b"HTTP/1.1 503")
        assert second.records()[-1]["done"]

    @pytest.mark.parametrize("split", ["utf8", "line"])
    def test_split_records_come_whole_after_joining(self, engine: FakeHandle, split: str) -> None:
        engine.turn(split=split, text="emoji")
        assert "".join(r["message"]["content"] for r in chat(engine).records()) == " 👩‍🚀🍓🇨🇿 ❤️👍🏽"

    def test_a_missing_model_can_be_pulled(self, engine: FakeHandle) -> None:
        engine.turn(present=False, pull_step_s=0.001)
        assert chat(engine).until(b"}").startswith(b"HTTP/1.1 404 Not Found")
        pull = connect(engine).send("POST", "/api/pull", {"model": "qwen2.5:3b"})
        assert pull.records()[-1] == {"status": "success"}
        assert chat(engine).records()[-1]["done"]

    def test_it_refuses_connections_until_it_comes_up_again(self, engine: FakeHandle) -> None:
        engine.turn(prefill_s=60)
        running = chat(engine)
        wait_until(lambda: engine.state()["running"] > 0)
        engine.go_down()
        with pytest.raises(ConnectionResetError):
            running.until(b"never")
        with pytest.raises(ConnectionRefusedError):
            connect(engine)
        engine.come_up()
        assert connect(engine).send("GET", "/").until(b"running")

    def test_an_unknown_knob_is_refused(self, engine: FakeHandle) -> None:
        with pytest.raises(ValueError, match="speed"):
            engine.turn(speed=1)

    def test_tokens_can_carry_their_sending_time(self, engine: FakeHandle) -> None:
        engine.turn(text="time")
        times = [int(r["message"]["content"]) for r in chat(engine).records()[:-1]]
        assert times == sorted(times)
        assert times[0] > last_seen(engine)["received_ns"]
