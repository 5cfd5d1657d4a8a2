"""How an answer's end is told by kind, from a server that misbehaves as the test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from harness import LINGER_0, free_port

from bench.running.client import Patience, Target, WrongKey, generate
from bench.running.stream import Reply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'event: token\ndata: {"token": " fall", "done": false}\n\n'
DONE = b'event: done\ndata: {"done": true, "prompt_tokens": 9, "completion_tokens": 2, "queue_ms": 0.5, "new": 1}\n\n'
QUICK = Patience(connect_s=2.0, answer_s=5.0, silence_s=0.2)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def refusal(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[Target]:
    """One request is answered by `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Target("pi1", f"http://127.0.0.1:{listener.getsockname()[1]}", "pk_secret")
        thread.join()


def asked(*pieces: bytes, reset: bool = False) -> Reply:
    def answer(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)

    with serving(answer) as target:
        return generate(target, "Why?", 2, QUICK)


def kind_of(reply: Reply) -> str:
    assert reply.counts is None
    return str(reply.failure)


def test_a_whole_answer_has_its_tokens_times_and_the_engines_counts() -> None:
    reply = asked(HEAD, chunked(TOKEN), chunked(b": ping\n\n" + TOKEN), chunked(DONE))
    assert reply.failure is None
    assert reply.counts is not None
    assert (reply.counts.completion_tokens, reply.counts.queue_ms) == (2, 0.5)
    assert reply.sent_at < reply.tokens_at[0] <= reply.tokens_at[1] <= reply.ended_at


def test_events_cut_anywhere_are_the_same_events() -> None:
    stream = HEAD + chunked(TOKEN) + chunked(TOKEN + DONE)
    reply = asked(*(stream[i : i + 7] for i in range(0, len(stream), 7)))
    assert len(reply.tokens_at) == 2
    assert reply.counts is not None


def test_a_refusal_has_its_status_code_words_and_wait() -> None:
    body = b'{"error": "queue_full", "detail": "The line is full.", "retry_after_s": 4}'
    failure = asked(refusal(429, body)).failure
    assert failure is not None
    assert (str(failure), failure.detail, failure.retry_after_s) == ("429 queue_full", "The line is full.", 4.0)


def test_a_refusal_that_is_not_the_appliances_has_its_status() -> None:
    assert kind_of(asked(refusal(502, b"<html>Bad Gateway</html>"))) == "502"
    assert kind_of(asked(refusal(500, b'{"error": null}'))) == "500 None"


def test_an_error_event_is_told_apart_from_a_refusal() -> None:
    event = b'event: error\ndata: {"error": "engine_stalled", "detail": "no token"}\n\n'
    reply = asked(HEAD, chunked(b'event: queued\ndata: {"position": 1, "eta_s": 2}\n\n'), chunked(event))
    assert kind_of(reply) == "event engine_stalled"
    assert reply.was_queued


@pytest.mark.parametrize("ending", [b"", b"0\r\n\r\n"])
def test_a_stream_without_done_was_cut_off(ending: bytes) -> None:
    assert kind_of(asked(HEAD, chunked(TOKEN), ending)) == "cut_off"


def test_a_reset_was_cut_off() -> None:
    assert kind_of(asked(HEAD, chunked(TOKEN), reset=True)) == "cut_off"


def test_silence_is_a_time_out() -> None:
    release = threading.Event()
    with serving(lambda connection: (connection.sendall(HEAD), release.wait(10), None)[2]) as target:
        reply = generate(target, "Why?", 2, QUICK)
        release.set()
    assert kind_of(reply) == "timed_out"


def test_what_is_no_http_is_garbled() -> None:
    assert kind_of(asked(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) == "garbled"
    assert kind_of(asked(HEAD, chunked(b"event: done\ndata: {\n\n"))) == "garbled"


def test_a_closed_port_refuses() -> None:
    target = Target("pi1", f"http://127.0.0.1:{free_port()}", "pk_secret")
    assert kind_of(generate(target, "Why?", 2, QUICK)) == "refused"


def test_a_name_that_is_none_is_unreachable() -> None:
    assert kind_of(generate(Target("pi1", "http://no-such-host.invalid", "k"), "Why?", 2, QUICK)) == "unreachable"


def test_a_wrong_key_is_said_with_the_remedy_and_without_the_key() -> None:
    body = b'{"error": "unauthenticated", "detail": "No such key."}'
    with pytest.raises(WrongKey, match=r"not take this key \(401\): No such key\. .*--key-file") as told:
        asked(refusal(401, body))
    assert "pk_secret" not in str(told.value)
    assert "pk_secret" not in repr(Target("pi1", "http://pi1", "pk_secret"))


def test_the_request_asks_for_greedy_answers_that_nothing_stops() -> None:
    seen = b""

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + chunked(DONE))

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal seen
            connection, _ = listener.accept()
            with connection:
                seen = connection.recv(65536)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        generate(Target("pi1", f"http://127.0.0.1:{listener.getsockname()[1]}/", "pk_x"), "Why?", 2, QUICK)
        thread.join()
    head, _, body = seen.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /generate HTTP/1.1\r\n")
    assert b"X-API-Key: pk_x" in head
    assert body == b'{"prompt":"Why?","max_tokens":2,"temperature":0,"stop":[],"stream":true}'
