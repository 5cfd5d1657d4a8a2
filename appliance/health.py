"""GET /health, /live and /ready: what is true at the moment of asking."""

from __future__ import annotations

import falcon

from appliance import __release__, __version__
from appliance.admission import Admission
from appliance.engine import Engine
from appliance.residency import Residency

RETRY_S = "5"


def why_not_ready(admission: Admission, residency: Residency) -> str | None:
    """The one judgement of readiness, for /ready and for refusals."""
    if admission.is_draining:
        return "draining"
    if admission.is_benchmarking:
        return "benchmarking"
    return residency.reason_not_ready()


class Health:
    """The first contract's health report; always 200."""

    key_required = False

    def __init__(self, admission: Admission, engine: Engine, residency: Residency) -> None:
        self._admission = admission
        self._engine = engine
        self._residency = residency

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        state = self._residency.state()
        is_healthy = state.is_reachable and self._residency.is_ready
        resp.media = {
            "status": "healthy" if is_healthy else "degraded",
            "model_loaded": state.is_loaded,
            "model_path": self._engine.model,
            "queue_size": self._admission.waiting,
            "active_requests": self._admission.running,
            "max_concurrent": self._admission.slots,
            "version": __version__,
            "release": __release__,
        }
        if not is_healthy:
            resp.media["detail"] = state.problem or self._residency.stage

    on_head = on_get  # what uptime probes ask


class Live:
    """200 as long as the process answers."""

    key_required = False

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"status": "alive"}

    on_head = on_get


class Ready:
    """200 when a generation would be taken now, else 503 with the reason."""

    key_required = False

    def __init__(self, admission: Admission, residency: Residency) -> None:
        self._admission = admission
        self._residency = residency

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        reason = why_not_ready(self._admission, self._residency)
        if reason is None:
            resp.media = {"status": "ready"}
            return
        resp.status = falcon.HTTP_503
        resp.set_header("Retry-After", RETRY_S)
        resp.media = {"status": "not_ready", "reason": reason}

    on_head = on_get
