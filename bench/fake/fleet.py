"""Many light fake nodes on loopback, in one process, a port each: what `bench run` asks of an appliance, and no more.

    python -m bench.fake.fleet --nodes 100 --tokens-per-s 5

It prints one line when all listen, `{"ports": [...]}`. Generations run side by side and are paced by a schedule. No two
nodes have quite the same pace, as no two boards have: in step, a thousand tokens would come at once and then none.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from dataclasses import dataclass
from random import Random

import msgspec

from appliance import __version__, sse
from bench.fake import ollama_bytes as wire
from bench.fake.engine import Request, read_request
from bench.fake.epoll_loop import Connection, Loop, Steps

UNEQUAL = 0.1
MODEL = "qwen2.5:3b"
TOKEN = wire.chunk(sse.token(" apple"))
STREAM = "text/event-stream; charset=utf-8"
FACTS = {
    "board": {"name": "Fake node", "memory_mib": 8064},
    "throttling": None,
    "bandwidth": {"bytes_per_s": 13.1e9, "threads": 4},
    "engine": {"version": "0.33.0", "num_parallel": 4, "problem": None},
    "model": {"name": MODEL, "digest": "357c53fb659c", "quantization": "Q4_K_M", "size_bytes": 1929912432},
    "settings": {"N_CTX": 512, "N_THREADS": 4, "N_BATCH": 128, "MAX_CONCURRENT_REQUESTS": 4},
}
HEALTH = {"status": "healthy", "model_loaded": True, "model_path": MODEL, "max_concurrent": 4, "version": __version__}


@dataclass
class FakeNode:
    """One node. Its key is not asked for."""

    tokens_per_s: float
    prefill_s: float
    dates: wire.Dates
    generations: int = 0

    def serve(self, connection: Connection) -> Steps:
        request = yield from read_request(connection)
        if request.path == "/generate":
            yield from self.generate(connection, request)
            return
        bodies = {"/ready": {"ready": True}, "/health": HEALTH, "/node": FACTS}
        if request.path in bodies:
            yield from connection.write(wire.closing(wire.answer(200, self.date, bodies[request.path])))
        elif request.path == "/metrics":
            text = f"appliance_generations_total {self.generations}\n".encode()
            yield from connection.write(wire.closing(wire.head(200, self.date, wire.TEXT, len(text)) + text))
        else:
            yield from connection.write(wire.closing(wire.answer(404, self.date, {"error": "not_found"})))

    def generate(self, connection: Connection, request: Request) -> Steps:
        """Tokens by an absolute schedule, then the counts. A word of the prompt is a token."""
        body = msgspec.json.decode(request.body)
        tokens, words = int(body["max_tokens"]), len(body["prompt"].split())
        self.generations += 1
        begun = time.monotonic()
        yield begun + self.prefill_s
        yield from connection.write(wire.closing(wire.head(200, self.date, STREAM)) + TOKEN)
        for number in range(1, tokens):
            yield begun + self.prefill_s + number / self.tokens_per_s
            yield from connection.write(TOKEN)
        done = {
            "done": True, "prompt_tokens": 20 + words, "completion_tokens": tokens, "finish_reason": "length",
            "prefill_ms": 1000 * self.prefill_s, "decode_ms": 1000 * (tokens - 1) / self.tokens_per_s,
        }  # fmt: skip
        yield from connection.write(wire.chunk(sse.event("done", done)) + wire.LAST_CHUNK)

    @property
    def date(self) -> str:
        return self.dates.http(time.time_ns())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fake.fleet", description="Many light fake nodes.")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--tokens-per-s", type=float, default=5.0)
    parser.add_argument("--prefill-s", type=float, default=0.5)
    arguments = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    loop, dates = Loop(), wire.Dates()
    rng = Random(arguments.nodes)
    paces = [rng.uniform(1 - UNEQUAL, 1 + UNEQUAL) for _ in range(arguments.nodes)]
    nodes = [FakeNode(arguments.tokens_per_s * pace, arguments.prefill_s / pace, dates) for pace in paces]
    ports = [loop.listen(0, node.serve) for node in nodes]
    print(wire.go_json({"ports": ports}), flush=True)
    loop.run()


if __name__ == "__main__":
    main()
