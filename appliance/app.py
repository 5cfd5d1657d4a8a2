"""The map of the service: which route is what, and which rules hold for all of them."""

from __future__ import annotations

import json
import logging
import re
from typing import Any
from uuid import uuid4

import falcon
from falcon.media import JSONHandler

from appliance import bandwidth_probe, errors, machine, openapi
from appliance.admission import Admission
from appliance.auth import RequireApiKey
from appliance.bandwidth import MemoryBandwidth
from appliance.benchmark import Benchmark
from appliance.benchmark_run import Benchmarks
from appliance.config import Config
from appliance.engine import Engine
from appliance.generate import Generate
from appliance.generation import Generations
from appliance.health import Health, Live, Ready
from appliance.issue_key import IssueKey
from appliance.keyring import KeyRing
from appliance.metrics import Metrics
from appliance.node import Node
from appliance.residency import Residency

SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)

log = logging.getLogger("appliance")


def create_app(
    config: Config, keys: KeyRing, admission: Admission, engine: Engine, residency: Residency
) -> falcon.App[falcon.Request, falcon.Response]:
    """The WSGI application over its collaborators; it reads no environment and starts nothing."""
    metrics = Metrics(admission, residency)
    generations = Generations(config, admission, engine, residency, metrics)
    bandwidth = MemoryBandwidth(config, admission, lambda: bandwidth_probe.probe(machine.ROOT))
    rules: list[Any] = [ReleaseAbandoned(), StampResponse(), RequireApiKey(keys)]
    app = falcon.App(middleware=rules)
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = JSONHandler(dumps=to_json_line)
    app.add_error_handler(Exception, report_bug)
    app.add_error_handler(falcon.HTTPError, render_http_error)
    app.add_error_handler(errors.ApplianceError, errors.render)

    app.add_route("/health", Health(admission, engine, residency))
    app.add_route("/live", Live())
    app.add_route("/ready", Ready(admission, residency))
    app.add_route("/generate", Generate(config, generations))
    app.add_route("/benchmark", Benchmark(config, Benchmarks(config, admission, engine, residency)))
    app.add_route("/node", Node(config, engine, lambda: bandwidth.measured))
    app.add_route("/node/bandwidth", bandwidth)
    app.add_route("/keys/generate", IssueKey(keys, config.key_issuance, config.client_timeout_s))
    app.add_route("/metrics", metrics)
    app.add_route("/openapi.json", openapi.Document())
    return app


def to_json_line(media: object) -> str:
    """JSON as people read it, with the line's end that a terminal expects."""
    return json.dumps(media, ensure_ascii=False) + "\n"


class StampResponse:
    """Gives every response the request's id, the client's own if it sent a sane one, and keeps proxies from holding or
    changing what is on its way."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        given = req.get_header("X-Request-ID")
        is_sane = given is not None and SANE_REQUEST_ID.fullmatch(given) is not None
        req.context.request_id = given if is_sane else uuid4().hex
        resp.set_header("X-Request-ID", req.context.request_id)
        resp.set_header("Cache-Control", "no-cache, no-transform")
        resp.set_header("X-Accel-Buffering", "no")


class ReleaseAbandoned:
    """Closes a stream that will not be sent, since an error came after it was made; first in the list, so run last."""

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        stream = getattr(req.context, "stream", None)
        if stream is not None and (not req_succeeded or resp.stream is not stream):
            stream.close()


def render_http_error(req: falcon.Request, resp: falcon.Response, ex: Exception, params: dict[str, Any]) -> None:
    """Falcon's own errors (404, 405 …) in the shape of ours."""
    assert isinstance(ex, falcon.HTTPError)
    resp.status = ex.status
    resp.content_type = falcon.MEDIA_JSON
    resp.media = {"error": _code(ex.title or "error"), "detail": ex.description or _hint(req, ex)}
    resp.stream = None
    if ex.headers:
        resp.set_headers(ex.headers)


def report_bug(req: falcon.Request, resp: falcon.Response, ex: Exception, params: dict[str, Any]) -> None:
    """What nobody foresaw: the log has the traceback, the client the request's id to find it by."""
    request_id = getattr(req.context, "request_id", "?")
    log.exception("Request %s %s %s failed", request_id, req.method, req.path, exc_info=ex)
    error = errors.ApplianceError(f"Something went wrong here; the node's log has it under {request_id}.")
    errors.render(req, resp, error, params)


def _code(title: str) -> str:
    return re.sub(r"[^a-z]+", "_", re.sub(r"^\d+ ", "", title.lower())).strip("_")


def _hint(req: falcon.Request, ex: falcon.HTTPError) -> str:
    if isinstance(ex, falcon.HTTPNotFound):
        return f"There is no {req.path[:100]} here; GET /openapi.json lists what there is."
    if isinstance(ex, falcon.HTTPMethodNotAllowed):
        allowed = dict(ex.headers or {}).get("Allow", "") if not isinstance(ex.headers, list) else ""
        return f"{req.method} is not allowed on {req.path[:100]}; allowed: {allowed}."
    return f"{ex.status}"
