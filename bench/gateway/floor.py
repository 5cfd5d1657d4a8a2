"""The floor: the least that a Python gateway on the same worker can do. It relays the engine's bytes as they come.

No keys, no queue, no checks, no events; what it costs is what falcon, gunicorn and gevent cost. Served by

    ENGINE_PORT=11434 gunicorn -k gevent bench.gateway.floor:app
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator

import falcon

ENGINE_PORT = int(os.environ.get("ENGINE_PORT", "11434"))


class Live:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"status": "alive"}


class Relay:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        engine = http.client.HTTPConnection("127.0.0.1", ENGINE_PORT)
        engine.request("POST", "/api/chat", req.bounded_stream.read(), {"Content-Type": "application/json"})
        answer = engine.getresponse()
        resp.status = answer.status
        resp.content_type = answer.headers["Content-Type"]
        resp.stream = relay(engine, answer)


def relay(engine: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """What is there, whenever something is there."""
    try:
        while data := answer.read1():
            yield data
    finally:
        engine.close()


app = falcon.App()
app.add_route("/live", Live())
app.add_route("/api/chat", Relay())
