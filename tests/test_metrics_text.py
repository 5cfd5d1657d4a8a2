"""The figures for Prometheus: what is true now, in text that Prometheus reads, without anybody's name in it."""

from __future__ import annotations

import pytest
from falcon import App, testing
from prometheus_client.parser import text_string_to_metric_families

from appliance.admission import Admission
from appliance.engine import Engine, LoadOptions
from appliance.metrics import Metrics
from appliance.residency import Residency

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def admission() -> Admission:
    return Admission(slots=1, queue_limit=4)


@pytest.fixture
def residency() -> Residency:
    engine = Engine(11434, "qwen2.5:3b", LoadOptions(512, 4, 128), "30m")
    return Residency(engine, keep_alive_s=1800)


@pytest.fixture
def metrics(admission: Admission, residency: Residency) -> Metrics:
    return Metrics(admission, residency)


def scrape(metrics: Metrics) -> Samples:
    app = App()
    app.add_route("/metrics", metrics)
    answer = testing.TestClient(app).simulate_get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_gauges_are_what_is_true_now(admission: Admission, metrics: Metrics) -> None:
    with admission.enter("a"), admission.enter("a"), admission.enter("b"):
        busy = scrape(metrics)
    idle = scrape(metrics)
    assert (busy["appliance_requests_running", ()], busy["appliance_requests_waiting", ()]) == (1, 2)
    assert (idle["appliance_requests_running", ()], idle["appliance_requests_waiting", ()]) == (0, 0)
    assert idle["appliance_slots", ()] == 1


def test_counters_and_histograms_start_at_nothing(metrics: Metrics) -> None:
    samples = scrape(metrics)
    assert samples["appliance_tokens_after_client_left_total", ()] == 0
    assert samples["appliance_queue_wait_seconds_count", ()] == 0
    assert samples["appliance_time_to_first_token_seconds_bucket", (("le", "120.0"),)] == 0


def test_what_is_counted_is_told(metrics: Metrics) -> None:
    metrics.generations.labels("stop").inc()
    metrics.tokens.labels("output").inc(31)
    metrics.ttft.observe(0.3)
    samples = scrape(metrics)
    assert samples["appliance_generations_total", (("outcome", "stop"),)] == 1
    assert samples["appliance_tokens_total", (("type", "output"),)] == 31
    assert samples["appliance_time_to_first_token_seconds_bucket", (("le", "0.5"),)] == 1
    assert samples["appliance_time_to_first_token_seconds_bucket", (("le", "0.25"),)] == 0


def test_no_figure_bears_a_key_or_a_request(admission: Admission, metrics: Metrics) -> None:
    with admission.enter("0123456789ab"):
        assert {name for _, labels in scrape(metrics) for name, _ in labels} <= {
            "le",
            "outcome",
            "type",
            "version",
            "release",
        }


def test_loads_of_the_model_are_counted_by_who_loads_it(residency: Residency, metrics: Metrics) -> None:
    residency.loads = 3
    assert scrape(metrics)["appliance_model_loads_total", ()] == 3


def test_two_services_in_a_process_do_not_share_figures(
    admission: Admission, residency: Residency, metrics: Metrics
) -> None:
    metrics.tokens.labels("input").inc()
    assert ("appliance_tokens_total", (("type", "input"),)) not in scrape(Metrics(admission, residency))
