"""The engine's bytes, cut anywhere: HTTP framing, records, and what its errors mean to a client.

The bytes are captures of Ollama 0.33.0-rc2.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from threading import Timer
from time import sleep

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine import Engine
from appliance.errors import (
    ApplianceError,
    EngineBusy,
    EngineFailed,
    EngineStalled,
    EngineUnreachable,
    ModelMissing,
    NotReady,
    PromptTooLong,
)
from appliance.httpbody import CHUNK_LIMIT_BYTES, ResponseBody
from appliance.protocol import LoadOptions, Prompt, Record, error_of, is_same_model
from appliance.recordstream import Patience, RecordStream

TOKEN = (
    b'{"model":"smollm2:135m","created_at":"2026-11-22T19:37:32.937261724Z",'
    b'"message":{"role":"assistant","content":"\xf0\x9f\x98\x80 The"},"done":false}\n'
)
DONE = (
    b'{"model":"smollm2:135m","created_at":"2026-11-22T19:36:13.523705345Z","message":{"role":"assistant","content":""},'
    b'"done":true,"done_reason":"length","total_duration":146614510,"load_duration":984519,"prompt_eval_count":10,'
    b'"prompt_eval_duration":36119000,"eval_count":16,"eval_duration":105954000}\n'
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: Sun, 22 Nov 2026 19:37:29 GMT\r\n"
    b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)
TOO_LONG = (
    b'{"error":"{\\"error\\":{\\"code\\":400,\\"message\\":\\"request (909 tokens) exceeds the available context size '
    b'(512 tokens), try increasing it\\",\\"type\\":\\"exceed_context_size_error\\",\\"n_prompt_tokens\\":909,'
    b'\\"n_ctx\\":512}}"}'
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """`data` in pieces; a place beyond its end is taken round it."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    yield from (data[start:end] for start, end in pairwise(edges))


def feed(body: ResponseBody, pieces: Iterator[bytes]) -> bytes:
    return b"".join([body.feed(piece) for piece in pieces])


CUTS = st.lists(st.integers(0, 5000), max_size=12)
PAYLOADS = st.lists(st.binary(min_size=1, max_size=300) | st.sampled_from([TOKEN, DONE]), max_size=8)


class TestBody:
    @given(PAYLOADS, CUTS, st.sampled_from([b"", b";ext=1", b" "]))
    def test_chunks_arrive_whole_however_they_are_cut(self, payloads: list[bytes], cuts: list[int], ext: bytes) -> None:
        chunks = [b"%X%b\r\n%b\r\n" % (len(payload), ext, payload) for payload in payloads]
        body = ResponseBody()
        assert feed(body, cut(CHUNKED + b"".join(chunks) + b"0\r\n\r\n", cuts)) == b"".join(payloads)
        assert (body.status, body.is_complete) == (200, True)

    @given(st.binary(max_size=600), CUTS)
    def test_a_body_with_a_length_is_complete_at_its_end(self, payload: bytes, cuts: list[int]) -> None:
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-LENGTH: %d\r\n\r\n" % len(payload)
        body = ResponseBody()
        assert feed(body, cut(head + payload, cuts)) == payload
        assert (body.status, body.is_complete) == (400, True)
        truncated = ResponseBody()
        feed(truncated, cut((head + payload)[:-1], cuts))
        assert not truncated.is_complete

    @given(st.binary(max_size=600), CUTS)
    def test_a_body_without_a_length_goes_on_until_the_connection_ends(self, payload: bytes, cuts: list[int]) -> None:
        body = ResponseBody()
        assert feed(body, cut(b"HTTP/1.0 502 Bad Gateway\r\n\r\n" + payload, cuts)) == payload
        assert (body.status, body.is_complete) == (502, False)

    @given(CUTS)
    def test_what_follows_the_last_chunk_is_left_out(self, cuts: list[int]) -> None:
        body = ResponseBody()
        assert feed(body, cut(CHUNKED + chunk(b"a") + b"0\r\nExpires: never\r\n\r\nHTTP/1.1 500", cuts)) == b"a"
        assert body.is_complete

    @pytest.mark.parametrize(
        "framing",
        [b"-6\r\n", b"zz\r\n", b"\r\n", b"+\r\n", b"ffffffffffff\r\n", b"1" * (2 * CHUNK_LIMIT_BYTES + 20_000)],
        ids=["negative", "no number", "empty", "sign", "huge", "endless"],
    )
    def test_broken_chunks_are_the_engines_failure(self, framing: bytes) -> None:
        with pytest.raises(EngineFailed):
            ResponseBody().feed(CHUNKED + framing)

    @pytest.mark.parametrize(
        "head",
        [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"\r\n\r\n", b"\x00" * 70_000],
        ids=["another protocol", "no status", "nothing", "endless"],
    )
    def test_what_is_no_http_is_the_engines_failure(self, head: bytes) -> None:
        with pytest.raises(EngineFailed):
            ResponseBody().feed(head)


def an_engine(patience: Patience) -> Engine:
    return Engine(11434, "smollm2:135m", LoadOptions(512, 1, 128), "5m", patience)


@pytest.fixture
def engine() -> Engine:
    return an_engine(Patience(first_token_s=0.01, stall_s=0.01))


def meaning(status: int, body: bytes) -> ApplianceError:
    return error_of(status, body, "smollm2:135m", 512)


class Peer:
    """Both ends of a generation's connection."""

    def __init__(self, engine: Engine) -> None:
        ours, self.socket = socket.socketpair()
        self.stream = RecordStream(ours, engine.port, b"{}", engine.patience, meaning)

    def says(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def receive_all(self) -> list[Record]:
        records: list[Record] = []
        while not self.stream.is_ended:
            records += self.stream.receive(timeout_s=1)
        return records


@pytest.fixture
def peer(engine: Engine) -> Iterator[Peer]:
    peer = Peer(engine)
    yield peer
    peer.close()


class TestRecordStream:
    @given(cuts=CUTS)
    def test_records_arrive_whole_however_they_are_cut(self, cuts: list[int]) -> None:
        records: list[Record] = []
        with closing(Peer(an_engine(Patience()))) as peer:
            for piece in cut(CHUNKED + chunk(TOKEN) + chunk(TOKEN + DONE) + b"0\r\n\r\n", cuts):
                records += peer.stream._parse(piece)
            assert peer.stream.is_ended
        assert [record.text for record in records] == ["😀 The", "😀 The", ""]
        assert (records[-1].eval_count, records[-1].done_reason) == (16, "length")

    def test_the_request_turns_cutting_and_shifting_off(self, engine: Engine, peer: Peer) -> None:
        head, _, body = peer.socket.recv(1000).partition(b"\r\n\r\n")
        assert head.startswith(b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1:11434\r\n")
        assert body == b"{}"

    def test_tokens_before_a_failure_are_handed_on_first(self, peer: Peer) -> None:
        error = b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'
        peer.says(CHUNKED + chunk(TOKEN) + chunk(error) + b"0\r\n\r\n")
        assert [record.text for record in peer.stream.receive(timeout_s=1)] == ["😀 The"]
        with pytest.raises(EngineFailed, match="while running the model: unexpected EOF") as failure:
            peer.stream.receive(timeout_s=1)
        assert failure.value.retry_after_s

    @pytest.mark.parametrize("is_closed", [True, False])
    def test_an_end_without_done_is_a_failure_and_not_waited_for(self, peer: Peer, is_closed: bool) -> None:
        peer.says(CHUNKED + chunk(TOKEN) + b"0\r\n\r\n")
        if is_closed:
            peer.socket.shutdown(socket.SHUT_WR)
        assert len(peer.stream.receive(timeout_s=1)) == 1
        with pytest.raises(EngineFailed, match="without saying that it was done"):
            peer.stream.receive(timeout_s=60)

    def test_a_garbage_line_is_a_failure(self, peer: Peer) -> None:
        peer.says(CHUNKED + chunk(b"<html>\xff\n"))
        with pytest.raises(EngineFailed, match="not one of Ollama's"):
            peer.stream.receive(timeout_s=1)

    def test_a_close_before_the_first_byte_is_an_engine_that_is_away(self, peer: Peer) -> None:
        peer.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(EngineUnreachable):
            peer.stream.receive(timeout_s=1)

    def test_silence_before_the_first_record_names_the_setting(self, peer: Peer) -> None:
        with pytest.raises(EngineStalled, match="ENGINE_FIRST_TOKEN_TIMEOUT_S"):
            peer.stream.receive(timeout_s=60)

    def test_silence_after_it_names_the_other(self, peer: Peer) -> None:
        peer.says(CHUNKED + chunk(TOKEN))
        peer.stream.receive(timeout_s=1)
        with pytest.raises(EngineStalled, match="ENGINE_STALL_TIMEOUT_S"):
            peer.stream.receive(timeout_s=60)

    def test_what_came_while_a_slow_client_was_served_is_no_silence(self, peer: Peer) -> None:
        peer.says(CHUNKED + chunk(TOKEN))
        sleep(0.05)  # longer than the engine may be silent, and the event loop has not looked meanwhile
        assert len(peer.stream.receive(timeout_s=1)) == 1

    def test_closing_early_counts_what_nobody_read(self, peer: Peer) -> None:
        peer.says(CHUNKED + chunk(TOKEN) * 3)
        assert peer.stream.close() == 3

    def test_closing_at_the_end_counts_nothing(self, peer: Peer) -> None:
        peer.says(CHUNKED + chunk(DONE))
        peer.receive_all()
        assert peer.stream.close() == 0

    def test_an_abort_ends_the_wait_and_may_be_called_again(self, peer: Peer) -> None:
        peer.stream.abort()
        peer.stream.abort()
        with pytest.raises(EngineFailed):
            peer.stream.receive(timeout_s=1)
        peer.stream.close()
        peer.stream.abort()

    def test_an_error_response_is_read_to_its_end(self, peer: Peer) -> None:
        head = b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n"
        peer.says(head + chunk(TOO_LONG)[:50])
        later = Timer(0.05, peer.says, [chunk(TOO_LONG)[50:] + b"0\r\n\r\n"])
        later.start()
        with pytest.raises(PromptTooLong):
            peer.stream.receive(timeout_s=1)
        later.join()


class TestErrorOf:
    def error(self, engine: Engine, status: int, body: bytes) -> ApplianceError:
        return meaning(status, body)

    @pytest.mark.parametrize(
        "body",
        [TOO_LONG, b'{"error":' + msgspec.json.encode(msgspec.json.decode(TOO_LONG)["error"]) + b"}"],
        ids=["a string of JSON", "again encoded"],
    )
    def test_a_prompt_that_does_not_fit_is_told_with_its_numbers(self, engine: Engine, body: bytes) -> None:
        error = self.error(engine, 400, body)
        assert isinstance(error, PromptTooLong)
        assert error.extra == {"field": "prompt", "prompt_tokens": 909, "n_ctx": 512}
        assert "909 tokens" in error.detail

    @pytest.mark.parametrize("is_nested", [True, False])
    def test_the_error_may_be_an_object_too(self, engine: Engine, is_nested: bool) -> None:
        inner = msgspec.json.decode(msgspec.json.decode(TOO_LONG)["error"])
        body = msgspec.json.encode({"error": inner} if is_nested else inner)
        assert self.error(engine, 400, body).extra["prompt_tokens"] == 909

    def test_ollamas_own_sentence_about_the_context_is_known_too(self, engine: Engine) -> None:
        sentence = (
            b'{"error":"the prompt is longer than the context length currently available to the model; shorten the '
            b'prompt, adjust the context length in settings, or use a model with a longer context length"}'
        )
        error = self.error(engine, 400, sentence)
        assert isinstance(error, PromptTooLong)
        assert error.extra == {"field": "prompt", "n_ctx": 512}

    def test_404_is_a_missing_model_with_the_remedy(self, engine: Engine) -> None:
        error = self.error(engine, 404, b'{"error":"model \'smollm2:135m\' not found"}')
        assert isinstance(error, ModelMissing)
        assert "`ollama pull smollm2:135m`" in error.detail

    def test_503_is_a_busy_engine(self, engine: Engine) -> None:
        busy = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
        assert isinstance(self.error(engine, 503, busy), EngineBusy)

    @pytest.mark.parametrize(
        ("status", "body", "quoted"),
        [
            (500, b'{"error":"option \\"num_ctx\\" must be of type integer"}', 'option "num_ctx" must be'),
            (400, b'{"error":"\\"smollm2:135m\\" does not support thinking"}', "does not support thinking"),
            (
                400,
                b'{"error":"{\\"error\\":{\\"code\\":400,\\"type\\":\\"invalid_request_error\\"}}"}',
                "invalid_request",
            ),
            (400, b'{"error":"{not JSON"}', "{not JSON"),
            (403, b"", "answered 403"),
            (500, b"<html>\xff</html>", "<html>\ufffd</html>"),
            (500, b"[1, 2]", "[1, 2]"),
            (500, b'{"error":null}', "answered 500"),
            (501, b'{"error":{"message":"This server does not support embeddings."}}', "embeddings"),
        ],
    )
    def test_everything_else_is_the_engines_failure_in_its_own_words(
        self, engine: Engine, status: int, body: bytes, quoted: str
    ) -> None:
        error = self.error(engine, status, body)
        assert type(error) is EngineFailed
        assert quoted in error.detail

    def test_the_engines_words_are_not_quoted_without_end(self, engine: Engine) -> None:
        assert len(self.error(engine, 500, b"x" * 100_000).detail) < 500


def test_without_a_file_descriptor_it_is_this_node_that_is_not_ready() -> None:
    engine = Engine(11434, "qwen2.5:3b", LoadOptions(512, 4, 128), "30m")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as lowest_free:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free.fileno() + 1, hard))
        try:
            with pytest.raises(NotReady, match="Too many open files"):
                engine.generate(Prompt("Why?"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("name", "other", "is_same"),
    [
        ("qwen2.5:3b", "Qwen2.5:3B", True),
        ("registry.ollama.ai/library/qwen2.5:3b", "qwen2.5:3b", True),
        ("library/qwen2.5", "qwen2.5:latest", True),
        ("mirror:5000/library/qwen2.5:3b", "mirror:5000/library/qwen2.5:3b", True),
        ("mirror:5000/library/qwen2.5", "mirror:5000/library/qwen2.5:latest", True),
        ("mirror:5000/library/qwen2.5:3b", "qwen2.5:3b", False),
        ("qwen2.5:3b", "qwen2.5", False),
    ],
)
def test_a_model_is_known_by_all_its_names(name: str, other: str, is_same: bool) -> None:
    assert is_same_model(name, other) is is_same
