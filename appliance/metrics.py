"""The service's figures for Prometheus, in base units and with bounded labels: never a key, never a request id."""

from __future__ import annotations

import falcon
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from appliance import __release__, __version__
from appliance.admission import Admission
from appliance.residency import Residency

# OpenTelemetry's GenAI buckets, extended to what a Pi needs.
TTFT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120)
TPOT_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WAIT_BUCKETS_S = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use to anybody here


class Metrics:
    """GET /metrics, with a key."""

    def __init__(self, admission: Admission, residency: Residency) -> None:
        self._registry = registry = CollectorRegistry()
        self._admission = admission
        self._residency = residency
        self.generations = Counter("appliance_generations", "Ended generations.", ["outcome"], registry=registry)
        self.tokens = Counter("appliance_tokens", "Tokens by the engine's count.", ["type"], registry=registry)
        self.tokens_after_client_left = Counter(
            "appliance_tokens_after_client_left",
            "Tokens that the engine still made for a client that had left.",
            registry=registry,
        )
        self.queue_wait = Histogram(
            "appliance_queue_wait_seconds", "Time in the line.", buckets=WAIT_BUCKETS_S, registry=registry
        )
        self.ttft = Histogram(
            "appliance_time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            buckets=TTFT_BUCKETS_S,
            registry=registry,
        )
        self.tpot = Histogram(
            "appliance_time_per_output_token_seconds",
            "The engine's decode time divided by its tokens.",
            buckets=TPOT_BUCKETS_S,
            registry=registry,
        )
        registry.register(self)

    def collect(self) -> list[Metric]:
        """What others count, read from what is true now."""
        admission = self._admission
        build = GaugeMetricFamily("appliance_build_info", "Which appliance this is.", labels=["version", "release"])
        build.add_metric([__version__, __release__ or ""], 1)
        return [
            build,
            GaugeMetricFamily("appliance_requests_running", "Requests in a slot.", admission.running),
            GaugeMetricFamily("appliance_requests_waiting", "Requests in the line.", admission.waiting),
            GaugeMetricFamily("appliance_slots", "Slots.", admission.slots),
            CounterMetricFamily("appliance_model_loads", "Times the service loaded the model.", self._residency.loads),
        ]

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = CONTENT_TYPE_PLAIN_0_0_4
        resp.data = generate_latest(self._registry)
