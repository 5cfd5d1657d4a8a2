"""No request reaches a resource without a valid key, unless the resource says that it needs none."""

from __future__ import annotations

from typing import Any

import falcon
import pytest
from falcon.testing import TestClient

from appliance import errors
from appliance.auth import RequireApiKey
from appliance.errors import Unauthenticated

GOOD = "pk_0123456789ab_" + "s" * 43


class FakeRing:
    """Knows one key."""

    def verify(self, token: str) -> str:
        if token != GOOD:
            raise Unauthenticated("The API key is unknown or wrong.", reason="unknown")
        return "the key of alice"


class Closed:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"key": req.context.key}


class Open:
    key_required = False

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"has_key": hasattr(req.context, "key")}


@pytest.fixture
def client() -> TestClient:
    app = falcon.App(middleware=[RequireApiKey(FakeRing())])  # type: ignore[arg-type]
    app.add_error_handler(errors.ApplianceError, errors.render)
    app.add_route("/closed", Closed())
    app.add_route("/open", Open())
    return TestClient(app)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": GOOD},
        {"Authorization": f"Bearer {GOOD}"},
        {"authorization": f"bearer  {GOOD} "},
        {"X-API-Key": GOOD, "Authorization": f"Bearer {GOOD}"},
        {"X-API-Key": GOOD, "Authorization": "Basic YTpi"},
    ],
)
def test_it_takes_a_key_from_either_header(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.simulate_post("/closed", headers=headers)
    assert (answer.status_code, answer.json) == (200, {"key": "the key of alice"})


REFUSED: list[tuple[dict[str, str], str]] = [
    ({}, "missing"),
    ({"X-API-Key": ""}, "missing"),
    ({"X-API-Key": "  "}, "missing"),
    ({"Authorization": ""}, "missing"),
    ({"Authorization": "Bearer"}, "missing"),
    ({"Authorization": "Basic YTpi"}, "missing"),
    ({"Authorization": GOOD}, "missing"),
    ({"X-API-Key": GOOD, "Authorization": f"Bearer {GOOD[:-1]}x"}, "malformed"),
    ({"X-API-Key": GOOD[:-1] + "x"}, "unknown"),
    ({"X-API-Key": f"{GOOD}, {GOOD}"}, "unknown"),
    ({"X-API-Key": "schlüssel"}, "unknown"),
    ({"Authorization": "Bearer schlüssel"}, "unknown"),
]


@pytest.mark.parametrize(("headers", "reason"), REFUSED)
def test_it_refuses_with_401_and_says_why(client: TestClient, headers: dict[str, str], reason: str) -> None:
    answer = client.simulate_post("/closed", headers=headers)
    assert (answer.status_code, answer.json["error"], answer.json["reason"]) == (401, "unauthenticated", reason)
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="pi-llm"'


@pytest.mark.parametrize(("headers", "reason"), REFUSED)
def test_it_lets_everybody_ask_a_resource_that_needs_no_key(
    client: TestClient, headers: dict[str, str], reason: str
) -> None:
    answer = client.simulate_get("/open", headers=headers)
    assert (answer.status_code, answer.json) == (200, {"has_key": False})


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE"])
def test_a_resource_that_says_nothing_is_closed_whatever_the_method(client: TestClient, method: str) -> None:
    assert client.simulate_request(method, "/closed").status_code == 401


def test_a_route_that_does_not_exist_is_404_without_a_key(client: TestClient) -> None:
    assert client.simulate_post("/nowhere").status_code == 404


def test_bytes_that_are_no_text_are_refused_by_the_real_ring(tmp_path: Any) -> None:
    from appliance.keyring import KeyRing
    from appliance.keys import KeyStore

    ring = KeyRing(KeyStore(tmp_path / "api_keys.db", b"a pepper of the tests"))
    for token in ("schlüssel", "pk_0123456789ab_" + "\xff" * 43, "\udcff", "k" * 10_240):
        with pytest.raises(Unauthenticated) as caught:
            ring.verify(token)
        assert caught.value.extra["reason"] == "malformed"
    ring.close()
