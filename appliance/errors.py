"""The errors of the service and their one rendering as JSON.

    ApplianceError
    ├── MalformedBody 400          the body is not JSON
    ├── Unauthenticated 401        no key, or none that is valid now
    ├── IssuanceRefused 403        POST /keys/generate is not open to this client
    ├── BodyTimeout 408            the body did not arrive in time
    ├── BodyTooLarge 413
    ├── UnsupportedMediaType 415
    ├── InvalidValue 422           one field is wrong: names it, what was given, what is allowed
    │   └── PromptTooLong 422      the prompt does not fit the node's context
    ├── TooManyRequests 429        key issuing is limited in rate
    │   ├── QueueFull 429
    │   ├── Displaced 429          a first request of another key took this place in a full line
    │   └── DeadlineTooShort 429   the line is longer than the request's own deadline
    ├── ClientGone 499             nobody reads this answer; the log does
    ├── EngineFailed 502           the engine gave an error, or ended without `done`
    ├── NotReady 503               starting, draining or benchmarking
    ├── EngineUnreachable 503
    ├── EngineBusy 503
    ├── ModelMissing 503
    ├── KeysUnavailable 503        the key database cannot be written now
    ├── EngineStalled 504          no first byte, or no next token, in time
    ├── WaitTimeout 504            waited MAX_QUEUE_WAIT_S, or the request's own deadline, for a slot
    ├── GenerationTimeout 504      the generation ran into the deadline
    ├── BenchmarkTimeout 504       the benchmark asked for more than one may take
    └── StorageFull 507            the disk has no room for a new key

Each error carries a status, a machine-readable code, a sentence with the remedy and, where waiting helps, the
seconds to wait. The same error becomes an HTTP response before a stream has begun and an `error` event after.
"""

from __future__ import annotations

from math import ceil
from typing import Any, ClassVar

import falcon


class ApplianceError(Exception):
    """Base of all errors that a client is told of.

    detail: one sentence that says what is wrong and what to do.
    retry_after_s: seconds after which trying again makes sense, or None.
    extra: further JSON fields of the answer.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, *, retry_after_s: float | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = None if retry_after_s is None else max(1, ceil(retry_after_s))
        self.extra = extra

    def as_dict(self) -> dict[str, Any]:
        """The JSON body of the response, and the data of an `error` event."""
        body: dict[str, Any] = {"error": self.code, "detail": self.detail, **self.extra}
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        return body


class MalformedBody(ApplianceError):
    status, code = 400, "malformed_json"


class Unauthenticated(ApplianceError):
    status, code = 401, "unauthenticated"


class IssuanceRefused(ApplianceError):
    status, code = 403, "issuance_refused"


class BodyTimeout(ApplianceError):
    status, code = 408, "body_timeout"


class BodyTooLarge(ApplianceError):
    status, code = 413, "body_too_large"


class UnsupportedMediaType(ApplianceError):
    status, code = 415, "unsupported_media_type"


class InvalidValue(ApplianceError):
    status, code = 422, "invalid_value"


class PromptTooLong(InvalidValue):
    code = "prompt_too_long"


class TooManyRequests(ApplianceError):
    status, code = 429, "too_many_requests"


class QueueFull(TooManyRequests):
    code = "queue_full"


class Displaced(TooManyRequests):
    code = "displaced"


class DeadlineTooShort(TooManyRequests):
    code = "deadline_too_short"


class ClientGone(ApplianceError):
    status, code = 499, "client_gone"


class EngineFailed(ApplianceError):
    status, code = 502, "engine_failed"


class NotReady(ApplianceError):
    status, code = 503, "not_ready"


class EngineUnreachable(ApplianceError):
    status, code = 503, "engine_unreachable"


class EngineBusy(ApplianceError):
    status, code = 503, "engine_busy"


class ModelMissing(ApplianceError):
    status, code = 503, "model_missing"


class KeysUnavailable(ApplianceError):
    status, code = 503, "keys_unavailable"


class EngineStalled(ApplianceError):
    status, code = 504, "engine_stalled"


class WaitTimeout(ApplianceError):
    status, code = 504, "wait_timeout"


class GenerationTimeout(ApplianceError):
    status, code = 504, "generation_timeout"


class BenchmarkTimeout(ApplianceError):
    status, code = 504, "benchmark_timeout"


class StorageFull(ApplianceError):
    status, code = 507, "storage_full"


def render(req: falcon.Request, resp: falcon.Response, ex: Exception, params: dict[str, Any]) -> None:
    """Falcon's handler for every ApplianceError: status, JSON body, Retry-After, WWW-Authenticate."""
    assert isinstance(ex, ApplianceError)
    resp.status = "499 Client Closed Request" if ex.status == 499 else falcon.code_to_http_status(ex.status)
    resp.content_type = falcon.MEDIA_JSON
    resp.media = ex.as_dict()
    resp.stream = None
    if ex.retry_after_s is not None:
        resp.set_header("Retry-After", str(ex.retry_after_s))
    if isinstance(ex, Unauthenticated):
        resp.set_header("WWW-Authenticate", 'Bearer realm="pi-llm"')
