"""A Pi with faults that no test machine has: it slows down while it is measured, or answers 429. In this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.pywsgi import WSGIServer

from bench.running.client import Target

RATE = 5.0


class FakePi:
    """clocks_mhz: one for each look at GET /node, the last one for ever; digests: so too, of its model.

    refuses: status of POST /benchmark, or 0. engine_fails: so often, with the settings that are asked for first.
    """

    def __init__(
        self,
        clocks_mhz: tuple[int, ...] = (2400,),
        refuses: int = 0,
        digests: tuple[str, ...] = ("aaaa",),
        engine_fails: int = 0,
    ) -> None:
        self.clocks_mhz, self.refuses, self.digests = list(clocks_mhz), refuses, list(digests)
        self.measured, self.engine_fails, self.first = 0, engine_fails, dict[str, Any]()
        self.target = Target("pi2", "", "a key")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        path = environ["PATH_INFO"]
        if path == "/benchmark" and not self.refuses:
            body = json.loads(environ["wsgi.input"].read())
            start_response("200 OK", [("Content-Type", "text/event-stream")])
            yield from self._benchmark(body)
            return
        start_response(f"{self.refuses if path == '/benchmark' else 200} X", [("Content-Type", "application/json")])
        yield json.dumps(self._node() if path == "/node" else {"error": "queue_full", "detail": "Full."}).encode()

    def _node(self) -> dict[str, Any]:
        clock = self.clocks_mhz.pop(0) if len(self.clocks_mhz) > 1 else self.clocks_mhz[0]
        digest = self.digests.pop(0) if len(self.digests) > 1 else self.digests[0]
        clocks = {"now": [clock], "max": 2400, "measured": None}
        return {
            "board": {"cores": 4}, "governor": "performance", "clocks": clocks, "bandwidth": {"bytes_per_s": 1e10},
            "settings": {"N_CTX": 512, "N_THREADS": 1, "N_BATCH": 64}, "temperature_c": 50.0,
            "model": {"name": "m", "digest": digest},
        }  # fmt: skip

    def _benchmark(self, body: dict[str, Any]) -> Iterator[bytes]:
        yield b'event: progress\ndata: {"stage": "measuring"}\n\n'
        self.first = self.first or body
        if self.engine_fails and body == self.first:
            self.engine_fails -= 1
            yield b'event: error\ndata: {"error": "engine_failed", "detail": "The engine ended its stream."}\n\n'
            return
        gevent.sleep(0.02)  # for the look that a measuring begins with
        self.measured += 1
        setting = [body.get(name, [default])[0] for name, default in (("context_sizes", 512), ("threads", 1))]
        sample = {
            "context_size": setting[0], "threads": setting[1], "batch_size": body.get("batch_sizes", [64])[0],
            "warm_up": False, "latency_ms": 1000.0, "ttft_ms": 100.0, "load_ms": 0.0, "prompt_tokens": 40,
            "completion_tokens": 8, "finish_reason": "length", "decode_tokens_per_second": RATE * setting[1],
        }  # fmt: skip
        yield f"event: result\ndata: {json.dumps({'model': 'm', 'samples': [sample]})}\n\n".encode()


@contextmanager
def running_pi(**behaviour: Any) -> Iterator[FakePi]:
    pi = FakePi(**behaviour)
    server = WSGIServer(("127.0.0.1", 0), pi, log=None)
    server.start()
    pi.target = Target("pi2", f"http://127.0.0.1:{server.server_port}", "a key")
    try:
        yield pi
    finally:
        server.stop()
