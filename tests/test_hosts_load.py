"""The clients of a test fleet go to the next node where one refuses, and call everything else a failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.hosts.load import Failed, Load, RefusedHere, require_whole_stream

DONE = b'event: done\ndata: {"done": true, "completion_tokens": 1, "finish_reason": "stop"}\n\n'
TOKEN = b'event: token\ndata: {"token": "a"}\n\n'
REFUSAL = b'event: error\ndata: {"error": "not_ready", "retry_after_s": 5}\n\n'


def stream(*events: bytes) -> Iterator[bytes]:
    return iter(b"".join(events).splitlines(keepends=True))


class Node(BaseHTTPRequestHandler):
    """Answers everything with `status`; 200 is a whole answer."""

    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"completion_tokens": 1, "finish_reason": "stop"}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a service on 127.0.0.2 that answers with the status of the test's parameter, and of one on
    127.0.0.1 that answers."""
    bad = ThreadingHTTPServer(("127.0.0.2", 0), type("Bad", (Node,), {"status": request.param}))
    good = ThreadingHTTPServer(("127.0.0.1", bad.server_port), Node)
    threads = [Thread(target=server.serve_forever, args=(0.01,)) for server in (bad, good)]
    for thread in threads:
        thread.start()
    yield bad.server_port
    for server, thread in zip((bad, good), threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("refusing", "failure"), [(429, False), (503, False), (500, True), (401, True)], indirect=["refusing"]
)
def test_only_a_node_that_is_busy_or_out_of_service_is_left_for_the_next(refusing: int, failure: bool) -> None:
    load = Load({"bad": "127.0.0.2", "good": "127.0.0.1"}, "key", port=refusing)
    answer = load._ask(["bad", "good"], is_streamed=False)
    assert (answer.failure is not None) == failure
    assert answer.refused_by == (() if failure else ("bad",))


@pytest.mark.parametrize("refusing", [200], indirect=True)
def test_a_refused_connection_leads_to_the_next_node(refusing: int) -> None:
    load = Load({"nobody": "127.0.0.3", "good": "127.0.0.1"}, "key", port=refusing)
    assert load._ask(["nobody", "good"], is_streamed=False).refused_by == ("nobody",)


def test_a_whole_stream_is_one_with_its_end() -> None:
    require_whole_stream(stream(TOKEN, b": ping\n\n", DONE))
    with pytest.raises(Failed, match="broke off after 1"):
        require_whole_stream(stream(TOKEN))


def test_a_refusal_in_line_is_one_and_after_a_token_it_is_a_failure() -> None:
    with pytest.raises(RefusedHere):
        require_whole_stream(stream(b'event: queued\ndata: {"position": 1}\n\n', REFUSAL))
    with pytest.raises(Failed, match="after 1 tokens"):
        require_whole_stream(stream(TOKEN, REFUSAL))
