"""POST /keys/generate: who may have a key, how fast, and what the answer is."""

from __future__ import annotations

from typing import Any

import falcon
import pytest
from fake_clock import FakeClock
from falcon.testing import Result, TestClient

from appliance import errors
from appliance.auth import RequireApiKey
from appliance.errors import StorageFull
from appliance.issue_key import IssueKey, TokenBucket, is_loopback
from appliance.key import IssuedKey

KEY = "pk_0123456789ab_" + "s" * 43


class FakeRing:
    def __init__(self) -> None:
        self.owners: list[str] = []
        self.error: Exception | None = None

    def issue(self, owner: str) -> IssuedKey:
        if self.error is not None:
            raise self.error
        self.owners.append(owner)
        return IssuedKey(KEY, "0123456789ab", owner, 1_800_000_000)


@pytest.fixture
def ring() -> FakeRing:
    return FakeRing()


def client(ring: FakeRing, issuance: Any, clock: FakeClock | None = None) -> TestClient:
    bucket = TokenBucket(10, 6.0, clock or FakeClock())
    app = falcon.App(middleware=[RequireApiKey(ring)])  # type: ignore[arg-type]
    app.add_error_handler(errors.ApplianceError, errors.render)
    app.add_route("/keys/generate", IssueKey(ring, issuance, 30.0, bucket))  # type: ignore[arg-type]
    return TestClient(app)


def ask(client: TestClient, peer: str = "127.0.0.1", body: Any = None, **headers: str) -> Result:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.simulate_post("/keys/generate", json=body or {"owner": "alice"}, headers=given, remote_addr=peer)


def test_the_answer_is_the_contracts(ring: FakeRing) -> None:
    answer = ask(client(ring, "local"))
    assert answer.status_code == 200
    assert answer.json == {"api_key": KEY, "owner": "alice", "created_at": 1_800_000_000}
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_local_takes_the_node_itself(ring: FakeRing, peer: str) -> None:
    assert ask(client(ring, "local"), peer).status_code == 200


@pytest.mark.parametrize("peer", ["192.168.1.7", "10.0.0.1", "fe80::1", "::ffff:10.0.0.1", "", "unix:", "127.0.0.1.x"])
def test_local_refuses_everybody_else_with_the_remedy(ring: FakeRing, peer: str) -> None:
    answer = ask(client(ring, "local"), peer)
    assert (answer.status_code, answer.json["error"]) == (403, "issuance_refused")
    assert "`appliance keys create --owner NAME` on the node" in answer.json["detail"]
    assert ring.owners == []


@pytest.mark.parametrize(
    "header", ["Forwarded", "X_Forwarded_For", "X_Forwarded_Proto", "X_Real_IP", "Via", "Origin", "Sec_Fetch_Site"]
)
@pytest.mark.parametrize("value", ["for=127.0.0.1", "127.0.0.1", "null", ""])
def test_local_refuses_what_came_through_a_proxy_or_a_browser(ring: FakeRing, header: str, value: str) -> None:
    answer = ask(client(ring, "local"), **{header: value})
    assert answer.status_code == 403
    assert header.replace("_", "-") in answer.json["detail"]
    assert ring.owners == []


def test_open_takes_everybody(ring: FakeRing) -> None:
    assert ask(client(ring, "open"), "192.168.1.7", X_Forwarded_For="8.8.8.8").status_code == 200


def test_off_takes_nobody(ring: FakeRing) -> None:
    answer = ask(client(ring, "off"))
    assert answer.status_code == 403
    assert "KEY_ISSUANCE is off; `appliance keys create" in answer.json["detail"]


def test_who_may_not_have_a_key_is_told_so_before_the_body_is_read(ring: FakeRing) -> None:
    answer = client(ring, "off").simulate_post("/keys/generate", body="not json")
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"owner": ""}, "owner"),
        ({"owner": "x" * 101}, "owner"),
        ({"owner": 7}, "owner"),
        ({"owner": "a\nb"}, "owner"),
        ({"owner": "   "}, "owner"),
        ({"name": "alice"}, "name"),
        ({"owner": "alice", "admin": True}, "admin"),
    ],
)
def test_a_wrong_body_is_422_names_the_field_and_costs_no_turn(
    ring: FakeRing, body: dict[str, Any], field: str
) -> None:
    asked = client(ring, "local")
    for _ in range(11):
        answer = ask(asked, body=body)
        assert (answer.status_code, answer.json["field"]) == (422, field)
    assert ask(asked).status_code == 200


def test_a_form_that_any_web_page_could_send_is_refused(ring: FakeRing) -> None:
    answer = client(ring, "local").simulate_post(
        "/keys/generate", body='{"owner": "alice"}', headers={"Content-Type": "text/plain"}, remote_addr="127.0.0.1"
    )
    assert answer.status_code == 415
    assert ring.owners == []


def test_keys_are_made_ten_at_once_and_then_one_each_six_seconds(ring: FakeRing) -> None:
    clock = FakeClock()
    asked = client(ring, "local", clock)
    assert [ask(asked).status_code for _ in range(11)] == [200] * 10 + [429]
    clock.advance(4)
    refused = ask(asked)
    assert (refused.status_code, refused.headers["Retry-After"], refused.json["retry_after_s"]) == (429, "2", 2)
    clock.advance(2)
    assert [ask(asked).status_code for _ in range(2)] == [200, 429]


def test_a_bucket_that_rested_holds_no_more_than_its_burst() -> None:
    clock = FakeClock()
    bucket = TokenBucket(3, 2.0, clock)
    clock.advance(1000)
    assert [bucket.take() for _ in range(5)] == [0.0, 0.0, 0.0, 2.0, 2.0]
    clock.advance(3)
    assert [bucket.take() for _ in range(2)] == [0.0, 1.0]


def test_a_full_disk_is_507(ring: FakeRing) -> None:
    ring.error = StorageFull("The disk is full.")
    answer = ask(client(ring, "local"))
    assert (answer.status_code, answer.json["error"]) == (507, "storage_full")


def test_loopback_is_judged_by_the_address_alone() -> None:
    assert not any(is_loopback(text) for text in ("localhost", "0.0.0.0", "::", "127.1", "[::1]", "::ffff:8.8.8.8"))
