"""GET /openapi.json is valid OpenAPI 3.1, describes every route, and the running service agrees with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from falcon import inspect
from harness import Node
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from appliance.admission import Admission
from appliance.app import create_app
from appliance.config import Config
from appliance.engine import Engine
from appliance.keyring import KeyRing
from appliance.keys import KeyStore
from appliance.openapi import document
from appliance.protocol import LoadOptions
from appliance.residency import Residency

SETTINGS = {"N_CTX": 4096, "MAX_TOKENS": 4, "KEY_LIMIT": 100_000}


@pytest.fixture
def routes(tmp_path: Path) -> Iterator[dict[str, set[str]]]:
    """What the service really has: paths and methods, without the OPTIONS that Falcon adds."""
    keys = KeyRing(KeyStore(tmp_path / "keys.db", b"a pepper of the tests"))
    engine = Engine(11434, "qwen2.5:3b", LoadOptions(512, 4, 128), "30m")
    app = create_app(Config(), keys, Admission(1, 1), engine, Residency(engine, 1800))
    yield {
        route.path: {method.method.lower() for method in route.methods if not method.internal} - {"head"}  # as GET
        for route in inspect.inspect_routes(app)
    }
    keys.close()


def test_it_is_valid_openapi_3_1() -> None:
    assert document()["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(document()).validate()


def test_it_describes_the_routes_there_are(routes: dict[str, set[str]]) -> None:
    assert {path: set(operations) for path, operations in document()["paths"].items()} == routes


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        value = list(value.values())
    for inner in value if isinstance(value, list) else []:
        yield from references(inner)


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    used = {reference.rpartition("/")[2] for reference in references(document())}
    assert used == set(document()["components"]["schemas"])


# What the service refuses and no schema can say: tokens of a prompt, printable characters, settings multiplied.
SAID_IN_WORDS = {"1 to 100 printable characters, not only spaces", "at most 16 settings"}
UNKNOWN_HEADER = "x-schemathesis-unknown-property"


def is_said_in_words(response: schemathesis.Response) -> bool:
    if response.status_code != 422:
        return False
    error = response.json()
    return error["error"] == "prompt_too_long" or str(error["allowed"]) in SAID_IN_WORDS


config = schemathesis.Config()
config.projects.default.generation.allow_x00 = False  # NUL in a text is refused, too
# A deadline of a microsecond is a good one; what cannot be done in it is 504, as the document says.
config.projects.default.checks.not_a_server_error.expected_statuses += ["504"]
schema = schemathesis.openapi.from_dict(document(), config=config)


@pytest.mark.tier2
def test_the_service_gives_it(node: Node) -> None:
    assert node.get("/openapi.json").body == document()


@pytest.mark.tier2
@schema.exclude(path="/node/bandwidth").parametrize()  # takes no input, and a second of all cores each time
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_service_agrees(case: schemathesis.Case, running: Node) -> None:
    headers = {"X-API-Key": running.key}
    response = case.call(f"http://127.0.0.1:{running.port}", headers=headers)
    excluded = [positive_data_acceptance] if is_said_in_words(response) else []
    if UNKNOWN_HEADER in {name.lower() for name in case.headers or {}}:
        excluded.append(negative_data_rejection)  # HTTP wants headers that nobody knows passed over
    case.validate_response(response, excluded_checks=excluded, headers=headers)


@pytest.mark.tier2
def test_nothing_broke_meanwhile(node: Node) -> None:
    assert "Traceback" not in node.log
    assert node.generate(stream=False).status == 200
