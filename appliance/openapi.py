"""GET /openapi.json: the HTTP contract for programs, made from the same types that check the requests."""

from __future__ import annotations

from typing import Any

import falcon
import msgspec

from appliance import __version__
from appliance.benchmark import BenchmarkRequest
from appliance.benchmark_report import BenchmarkAnswer
from appliance.generate import GenerateAnswer, GenerateRequest
from appliance.generation import DEADLINE_HEADER, DEADLINE_LIMIT_S
from appliance.issue_key import KeyAnswer, KeyRequest
from appliance.node import NodeAnswer

REF = "#/components/schemas/{name}"
JSON = "application/json"
SSE = "text/event-stream"


class Document:
    """The resource; the document is made once."""

    key_required = False

    def __init__(self) -> None:
        self._bytes = msgspec.json.encode(document())

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = JSON
        resp.data = self._bytes


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document as a plain structure."""
    requests, schemas = _schemas()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pi LLM Fleet: the appliance",
            "version": __version__,
            "description": "One node: a local language model behind API keys and a fair bounded queue.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/health": {"get": _get("What is true of this node now.", {"200": _json("Health")})},
            "/live": {"get": _get("Whether the process answers.", {"200": _json("Status")})},
            "/ready": {
                "get": _get(
                    "Whether a generation would be taken now.",
                    {"200": _json("Status"), "503": _json("NotReady", headers=RETRY_AFTER)},
                )
            },
            "/generate": {"post": _generate(requests["GenerateRequest"])},
            "/benchmark": {"post": _benchmark(requests["BenchmarkRequest"])},
            "/node": {
                "get": _get(
                    "What this node is and how it is: machine, engine, model, settings.",
                    {"200": _json("NodeAnswer")} | _errors("401"),
                    security=KEY,
                )
            },
            "/node/bandwidth": {"post": _bandwidth()},
            "/keys/generate": {"post": _issue_key(requests["KeyRequest"])},
            "/metrics": {
                "get": _get(
                    "Figures for Prometheus.",
                    {"200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}}
                    | _errors("401"),
                    security=KEY,
                )
            },
            "/openapi.json": {"get": _get("This document.", {"200": _json_of({"type": "object"})})},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "Bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


KEY: list[dict[str, list[str]]] = [{"ApiKey": []}, {"Bearer": []}]
RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
SAID_BY = {
    "400": "The body is not JSON.",
    "401": "No valid API key.",
    "403": "Not open to this client; the detail has the remedy.",
    "404": "No such route.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "422": "A field is wrong: which, what was given, what is allowed.",
    "429": "Too many requests; Retry-After says when to try again.",
    "502": "The engine failed.",
    "503": "Not ready, draining, benchmarking, or the engine is away.",
    "504": "Waited too long.",
    "507": "The disk is full.",
}
BODY_ERRORS = ("400", "408", "413", "415", "422")


def _schemas() -> tuple[dict[str, Any], dict[str, Any]]:
    kinds = [GenerateRequest, GenerateAnswer, BenchmarkRequest, BenchmarkAnswer, NodeAnswer, KeyRequest, KeyAnswer]
    refs, schemas = msgspec.json.schema_components(kinds, ref_template=REF)
    for kind in (GenerateRequest, BenchmarkRequest, KeyRequest):
        schemas[kind.__name__]["additionalProperties"] = False
    for name in ("context_sizes", "threads", "batch_sizes"):
        _array_of(schemas["BenchmarkRequest"]["properties"][name])["uniqueItems"] = True
    text = {"type": "string"}
    count = {"type": "integer", "minimum": 0}
    schemas |= {
        "Health": _object(
            status={"enum": ["healthy", "degraded"]},
            model_loaded={"type": "boolean"},
            model_path=text,
            queue_size=count,
            active_requests=count,
            max_concurrent=count,
            version=text,
            release={"type": ["string", "null"], "description": "The deployed release; null outside of one."},
        ),
        "Status": _object(status=text),
        "NotReady": _object(status=text, reason=text),
        "Error": _error(),
    }
    return {kind.__name__: ref for kind, ref in zip(kinds, refs, strict=True)}, schemas


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _array_of(optional: dict[str, Any]) -> dict[str, Any]:
    """The list's schema in one that also allows null."""
    return next(kind for kind in optional["anyOf"] if kind["type"] == "array")


def _event(*names: str) -> dict[str, Any]:
    """One event of a stream: OpenAPI 3.1 has no word for a sequence, so tools take the schema for each event's."""
    data = {"type": "string", "contentMediaType": JSON, "description": "A JSON object; of `error`, an Error."}
    event = _object(event={"enum": list(names)}, data=data)
    return event | {"description": "One event; comments (`: ping`) come between while the stream is silent."}


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    error = _object(
        error={"type": "string", "description": "A code for programs, such as `queue_full`."},
        detail={"type": "string", "description": "What is wrong and what to do, in a sentence."},
    )
    error["properties"] |= {
        "field": {"type": "string", "description": "The one that is wrong."},
        "given": text,
        "allowed": {"type": ["string", "array"], "items": text},
        "retry_after_s": {"type": "integer", "minimum": 1},
    }
    return error


def _get(summary: str, responses: dict[str, Any], security: list[dict[str, list[str]]] | None = None) -> dict[str, Any]:
    return {"summary": summary, "responses": responses, "security": security or []}


def _generate(body: dict[str, Any]) -> dict[str, Any]:
    answer = {
        "200": {
            "description": "The answer: events as it is made, or one object with `stream: false`.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(name="GenerateAnswer")}},
                SSE: {"schema": _event("queued", "token", "done", "error")},
            },
        }
    }
    deadline = {
        "name": DEADLINE_HEADER,
        "in": "header",
        "description": "The request's own deadline in seconds; refused at once when the line cannot meet it.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": DEADLINE_LIMIT_S},
    }
    errors = _errors("401", *BODY_ERRORS, "429", "502", "503", "504")
    return _post("Answer a prompt.", body, answer | errors, parameters=[deadline])


def _benchmark(body: dict[str, Any]) -> dict[str, Any]:
    report = {
        "200": {
            "description": "What was measured and what is recommended; as events with `Accept: text/event-stream`.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(name="BenchmarkAnswer")}},
                SSE: {"schema": _event("queued", "progress", "result", "error")},
            },
        }
    }
    return _post("Measure this node.", body, report | _errors("401", *BODY_ERRORS, "429", "502", "503", "504"))


def _bandwidth() -> dict[str, Any]:
    report = {
        "200": {
            "description": "How fast memory is read, by threads; as events with `Accept: text/event-stream`.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(name="Bandwidth")}},
                SSE: {"schema": _event("progress", "result", "error")},
            },
        }
    }
    operation = _get("Measure how fast this node's memory is read.", report | _errors("401", "503", "504"), KEY)
    return operation | {"parameters": []}


def _issue_key(body: dict[str, Any]) -> dict[str, Any]:
    answer = {"200": _json("KeyAnswer")}
    errors = _errors("403", *BODY_ERRORS, "429", "503", "507")
    return _post("Make an API key, as KEY_ISSUANCE allows.", body, answer | errors, security=[])


def _post(
    summary: str,
    body: dict[str, Any],
    responses: dict[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    security: list[dict[str, list[str]]] = KEY,
) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": parameters or [],
        "requestBody": {"required": True, "content": {JSON: {"schema": body}}},
        "responses": responses,
        "security": security,
    }


def _json(name: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    return _json_of({"$ref": REF.format(name=name)}, headers)


def _json_of(schema: dict[str, Any], headers: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": "OK", "content": {JSON: {"schema": schema}}, "headers": headers or {}}


def _errors(*statuses: str) -> dict[str, Any]:
    return {
        status: {
            "description": SAID_BY[status],
            "content": {JSON: {"schema": {"$ref": REF.format(name="Error")}}},
            "headers": RETRY_AFTER if status in ("429", "503") else {},
        }
        for status in statuses
    }
