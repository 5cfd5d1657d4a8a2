"""Bad input of every kind: the status that fits, a JSON error that names what is wrong, and nothing else happens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Exchange, Node, wait_until

from appliance.bodies import BODY_LIMIT_BYTES
from appliance.keys import KeyStore
from bench.fake.handle import FakeHandle

pytestmark = pytest.mark.tier2

N_CTX = 4096  # what the fake says that it has loaded
SETTINGS = {"N_CTX": N_CTX, "MAX_TOKENS": 4, "CLIENT_TIMEOUT_S": 0.5}
JSON = "application/json"
GOOD = b'{"prompt": "Why do apples fall?", "stream": false}'


@pytest.fixture
def service(node: Node, engine: FakeHandle) -> Iterator[Node]:
    """The running service; whatever the test sent, it goes on as before."""
    before = len(node.log)
    yield node
    node.close_connections()
    node.wait_until_idle()
    assert engine.seen()["generations"] == 0, "a refused request reached the engine"
    assert node.generate(stream=False).status == 200
    assert "Traceback" not in node.log[before:]


def request(
    node: Node, method: str = "POST", path: str = "/generate", body: bytes = GOOD, **headers: str | None
) -> bytes:
    """A request as bytes, good unless told otherwise; a header that is None is left out, `_` in a name is `-`."""
    default: dict[str, str | None] = {"X_API_Key": node.key, "Content_Type": JSON, "Content_Length": str(len(body))}
    given = {name.replace("_", "-"): value for name, value in {**default, **headers}.items() if value is not None}
    lines = [f"{method} {path} HTTP/1.1", "Host: node", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin1") + body


def refused(exchange: Exchange, status: int) -> dict[str, Any]:
    """The JSON error of an answer that must have this status."""
    assert exchange.status == status, (exchange.status, exchange.json())
    assert exchange.headers["content-type"] == JSON
    error = exchange.json()
    assert isinstance(error["error"], str)
    assert error["detail"]
    return error


def with_fields(**fields: Any) -> bytes:
    return json.dumps({"prompt": "Why do apples fall?", "stream": False, **fields}).encode()


class TestValues:
    @pytest.mark.parametrize(
        ("body", "field"),
        [
            pytest.param(b"{}", "prompt", id="no prompt"),
            pytest.param(with_fields(prompt=None), "prompt", id="prompt null"),
            pytest.param(with_fields(prompt=7), "prompt", id="prompt a number"),
            pytest.param(with_fields(prompt=["x"]), "prompt", id="prompt a list"),
            pytest.param(with_fields(prompt=""), "prompt", id="prompt of 0"),
            pytest.param(with_fields(prompt="x" * 8193), "prompt", id="prompt of 8193"),
            pytest.param(with_fields(prompt="🍓" * 8193), "prompt", id="prompt of 8193 emoji"),
            pytest.param(with_fields(prompt="a\0b"), "prompt", id="NUL in the prompt"),
            pytest.param(b'{"prompt": "\\ud800"}', "prompt", id="high surrogate alone"),
            pytest.param(b'{"prompt": "\\udc00\\ud800"}', "prompt", id="surrogates the wrong way round"),
            pytest.param(with_fields(system="x" * 4097), "system", id="system of 4097"),
            pytest.param(with_fields(system=1), "system", id="system a number"),
            pytest.param(with_fields(system="\0"), "system", id="NUL in system"),
            pytest.param(with_fields(max_tokens=0), "max_tokens", id="max_tokens 0"),
            pytest.param(with_fields(max_tokens=2049), "max_tokens", id="max_tokens 2049"),
            pytest.param(with_fields(max_tokens=-1), "max_tokens", id="max_tokens -1"),
            pytest.param(with_fields(max_tokens=1.5), "max_tokens", id="max_tokens 1.5"),
            pytest.param(with_fields(max_tokens="10"), "max_tokens", id="max_tokens a string"),
            pytest.param(with_fields(max_tokens=True), "max_tokens", id="max_tokens true"),
            pytest.param(with_fields(max_tokens=10**18), "max_tokens", id="max_tokens huge"),
            pytest.param(with_fields(max_tokens=10**30), "max_tokens", id="max_tokens past 64 bits"),
            pytest.param(with_fields(temperature=-0.1), "temperature", id="temperature -0.1"),
            pytest.param(with_fields(temperature=2.1), "temperature", id="temperature 2.1"),
            pytest.param(with_fields(temperature=True), "temperature", id="temperature true"),
            pytest.param(with_fields(temperature="hot"), "temperature", id="temperature a string"),
            pytest.param(with_fields(temperature=float("nan")), "temperature", id="NaN"),
            pytest.param(with_fields(temperature=float("inf")), "temperature", id="Infinity"),
            pytest.param(with_fields(temperature=float("-inf")), "temperature", id="-Infinity"),
            pytest.param(b'{"prompt": "x", "temperature": 1e400}', "temperature", id="1e400"),
            pytest.param(with_fields(temperature=10**40), "temperature", id="temperature huge"),
            pytest.param(with_fields(top_p=1.1), "top_p", id="top_p 1.1"),
            pytest.param(with_fields(top_p=-0.1), "top_p", id="top_p -0.1"),
            pytest.param(with_fields(top_k=0), "top_k", id="top_k 0"),
            pytest.param(with_fields(top_k=101), "top_k", id="top_k 101"),
            pytest.param(with_fields(stop=["a", "b", "c", "d", "e"]), "stop", id="five stops"),
            pytest.param(with_fields(stop=[""]), "stop", id="an empty stop"),
            pytest.param(with_fields(stop="a"), "stop", id="stop a string"),
            pytest.param(with_fields(stop=[1]), "stop", id="stop of numbers"),
            pytest.param(with_fields(stop=["\0"]), "stop", id="NUL in a stop"),
            pytest.param(with_fields(stop=None), "stop", id="stop null"),
            pytest.param(with_fields(stream="no"), "stream", id="stream a string"),
            pytest.param(with_fields(stream=0), "stream", id="stream 0"),
            pytest.param(with_fields(num_ctx=9), "num_ctx", id="an option of the node's"),
            pytest.param(b'{"prompt": "x", "max_tokens": 5, "max_tokens": 0}', "max_tokens", id="the last of two"),
            pytest.param(b"[]", "body", id="a list"),
            pytest.param(b'"x"', "body", id="a string"),
            pytest.param(b"null", "body", id="null"),
            pytest.param(b"[" * 400 + b"]" * 400, "body", id="lists in lists"),
        ],
    )  # fmt: skip
    def test_a_wrong_value_names_its_field(self, service: Node, body: bytes, field: str) -> None:
        error = refused(service.open(request(service, body=body)), 422)
        assert (error["error"], error["field"]) == ("invalid_value", field)
        assert error["detail"].startswith(f"{field}: ")
        assert error["allowed"]

    def test_an_unknown_field_is_refused_with_the_nearest(self, service: Node) -> None:
        error = refused(service.open(request(service, body=with_fields(temprature=1))), 422)
        assert error["detail"] == "temprature: no such field; did you mean temperature?"
        assert error["field"] == "temprature"

    @pytest.mark.parametrize("depth", range(800, 1001, 20))
    def test_a_deep_value_is_refused_wherever_the_stack_ends(self, service: Node, depth: int) -> None:
        """Too deep to repeat in an answer comes earlier than too deep to read."""
        exchange = service.open(request(service, body=b'{"prompt": %b}' % (b"[" * depth + b"]" * depth)))
        refused(exchange, 422 if exchange.status == 422 else 400)

    def test_a_field_with_an_endless_name_is_not_repeated(self, service: Node) -> None:
        body = json.dumps({"x" * 200_000: float("nan")}).encode()
        assert len(refused(service.open(request(service, body=body)), 422)["detail"]) < 500

    @pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "1e9", "soon", "", "1,5", "5 s"])
    def test_a_deadline_that_is_none_is_refused(self, service: Node, given: str) -> None:
        error = refused(service.open(request(service, X_Request_Timeout_S=given)), 422)
        assert error["field"] == "X-Request-Timeout-S"


class TestAccepted:
    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"prompt": "x"}, id="prompt of 1"),
            pytest.param({"prompt": "x" * 8192}, id="prompt of 8192"),
            pytest.param({"prompt": "🍓" * 8192}, id="prompt of 8192 emoji"),
            pytest.param({"prompt": "\x01\x7f\u202e\ufffe"}, id="odd characters"),
            pytest.param({"system": ""}, id="system of 0"),
            pytest.param({"system": "é" * 4096}, id="system of 4096"),
            pytest.param({"system": None, "max_tokens": None}, id="nulls"),
            pytest.param({"max_tokens": 1, "temperature": 0, "top_p": 0, "top_k": 1, "stop": []}, id="least"),
            pytest.param({"max_tokens": 2048, "temperature": 2, "top_p": 1, "top_k": 100}, id="most"),
            pytest.param({"stop": ["a", "b", "c", "\n"]}, id="four stops"),
        ],
    )
    def test_the_limits_themselves_are_allowed(self, node: Node, engine: FakeHandle, fields: dict[str, Any]) -> None:
        assert node.open(request(node, body=with_fields(**fields))).status == 200
        messages = engine.seen()["requests"][-1]["body"]["messages"]
        assert messages[-1]["content"] == fields.get("prompt", "Why do apples fall?")

    @pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json;v=1"])
    def test_a_content_type_may_have_parameters(self, node: Node, kind: str) -> None:
        assert node.open(request(node, Content_Type=kind)).status == 200

    def test_a_chunked_body_is_a_body(self, node: Node) -> None:
        chunks = b"5\r\n" + GOOD[:5] + b"\r\n%x;a=b\r\n" % len(GOOD[5:]) + GOOD[5:] + b"\r\n0\r\nX-Trailer: y\r\n\r\n"
        head = request(node, body=b"", Content_Length=None, Transfer_Encoding="chunked")
        assert node.open(head + chunks).status == 200


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"prompt=x", id="a form"),
            pytest.param(GOOD[:-1], id="unfinished"),
            pytest.param(GOOD + b"{}", id="trailing data"),
            pytest.param(b"\xef\xbb\xbf" + GOOD, id="BOM"),
            pytest.param(GOOD.decode().encode("utf-16"), id="UTF-16"),
            pytest.param(b'{"prompt": "\xff\xfe"}', id="invalid UTF-8"),
            pytest.param(b'{"prompt": "a\nb"}', id="a raw newline"),
            pytest.param(b"{'prompt': 'x'}", id="single quotes"),
            pytest.param(b'{"prompt": "x", "top_k": 0x10}', id="hexadecimal"),
            pytest.param(b"[" * 200_000, id="200000 brackets"),
            pytest.param(b'{"prompt":' * 20_000 + b"1" + b"}" * 20_000, id="20000 objects deep"),
            pytest.param(b'{"prompt": "x", "top_k": ' + b"9" * 5000 + b"}", id="5000 digits"),
            pytest.param(b"\x1f\x8b\x08\x00", id="gzip"),
        ],
    )
    def test_what_is_no_json_is_400(self, service: Node, body: bytes) -> None:
        assert refused(service.open(request(service, body=body)), 400)["error"] == "malformed_json"

    @pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonl"])
    def test_another_content_type_is_415(self, service: Node, kind: str | None) -> None:
        error = refused(service.open(request(service, Content_Type=kind)), 415)
        assert "application/json" in error["detail"]

    @pytest.mark.parametrize("is_chunked", [False, True])
    def test_a_megabyte_is_413(self, service: Node, is_chunked: bool) -> None:
        body = b'{"prompt": "' + b"x" * 1_000_000 + b'"}'
        sent = request(service, body=body)
        if is_chunked:
            head = request(service, body=b"", Content_Length=None, Transfer_Encoding="chunked")
            sent = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        error = refused(service.open(sent), 413)
        assert error["limit_bytes"] == BODY_LIMIT_BYTES

    def test_a_body_without_end_is_408_and_the_end_of_the_connection(self, service: Node) -> None:
        head = request(service, body=b"", Content_Length=None, Transfer_Encoding="chunked")
        exchange = service.open(head + b"%x\r\n%b\r\n" % (len(GOOD), GOOD))
        assert refused(exchange, 408)["error"] == "body_timeout"
        exchange.send(b"0\r\n\r\n" + request(service, "GET", "/live", b""))
        assert rest_of(exchange) == b"", "bytes of a body must not become a request"

    def test_a_body_that_drips_is_408(self, service: Node) -> None:
        exchange = service.open(request(service, body=b"", Content_Length="1000"))
        begun = time.monotonic()
        is_answered = False
        while not is_answered and time.monotonic() - begun < 10:
            exchange.send(b" ")
            exchange._socket.settimeout(0.1)
            is_answered = has_bytes(exchange)
        exchange._socket.settimeout(10)
        assert refused(exchange, 408)["error"] == "body_timeout"

    def test_a_body_shorter_than_it_says_is_400_even_when_it_is_good_so_far(self, service: Node) -> None:
        exchange = service.open(request(service, Content_Length=str(len(GOOD) + 10)))
        exchange.half_close()
        assert refused(exchange, 400)["detail"] == f"The body broke off: {len(GOOD)} bytes of {len(GOOD) + 10} came."

    @pytest.mark.parametrize(
        "chunks",
        [b"zz\r\n", b"-1\r\n", b"2\r\n{}XX", b"2\r\n{}\r\n0\r\nno trailer\x00\r\n\r\n", b"5;a\x00\r\n"],
        ids=["no number", "negative", "no line end", "bad trailer", "bad extension"],
    )
    def test_broken_chunks_are_400(self, service: Node, chunks: bytes) -> None:
        head = request(service, body=b"", Content_Length=None, Transfer_Encoding="chunked")
        assert refused(service.open(head + chunks), 400)["error"] == "malformed_json"


def rest_of(exchange: Exchange) -> bytes:
    """What still comes until the service closes the connection."""
    try:
        return exchange._file.read()
    except ConnectionResetError:
        return b""


def has_bytes(exchange: Exchange) -> bool:
    try:
        return bool(exchange._socket.recv(1, 2))  # MSG_PEEK
    except TimeoutError:
        return False


class TestHeads:
    """What gunicorn itself refuses has the shape of our errors too."""

    @pytest.mark.parametrize(
        ("line", "status"),
        [
            pytest.param("Content-Length: 5", 400, id="two lengths"),
            pytest.param("Transfer-Encoding: chunked", 400, id="length and chunks"),
            pytest.param("X-Request-ID: a\nX-Evil: b", 400, id="newline in the request id"),
            pytest.param("X-Request-ID: a\rX-Evil: b", 400, id="CR in the request id"),
            pytest.param("X-Request-ID: a\0", 400, id="NUL in a header"),
            pytest.param("X Name: a", 400, id="a name with a blank"),
            pytest.param("nonsense", 400, id="no header"),
            pytest.param("X-Long: " + "x" * 20_000, 431, id="20 kB header"),
            pytest.param("\r\n".join(f"X-{i}: a" for i in range(100)), 431, id="100 headers"),
            pytest.param("Expect: miracles", 417, id="an expectation"),
        ],
    )
    def test_a_bad_head_is_refused_in_json(self, service: Node, line: str, status: int) -> None:
        good = request(service)
        exchange = service.open(good.replace(b"Host: node", b"Host: node\r\n" + line.encode("latin1"), 1))
        refused(exchange, status)
        assert "x-evil" not in exchange.headers

    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, id="TLS"),
            pytest.param(b"GET /\r\n\r\n", 400, id="HTTP 0.9"),
            pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP 2"),
            pytest.param(b"get /live HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="lower case"),
            pytest.param(b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, id="an endless path"),
            pytest.param(b"BREW /live HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="no method of HTTP"),
        ],
    )
    def test_what_is_no_request_is_refused_in_json(self, service: Node, raw: bytes, status: int) -> None:
        refused(service.open(raw), status)

    def test_a_head_that_never_ends_loses_its_connection(self, service: Node) -> None:
        exchange = service.open(b"GET /live HTTP/1.1\r\nHost:")
        assert exchange._file.read() == b""

    @pytest.mark.parametrize(
        "line", ["SCRIPT_NAME: /x", "PATH_INFO: /live", "X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off"]
    )
    def test_no_header_changes_where_a_request_goes(self, node: Node, line: str) -> None:
        exchange = node.open(request(node).replace(b"Host: node", b"Host: node\r\n" + line.encode(), 1))
        assert "completion_tokens" in exchange.json()

    @pytest.mark.parametrize("given", ["a b", "x" * 129, "{}", "a;b", "é"])
    def test_an_odd_request_id_is_replaced(self, node: Node, given: str) -> None:
        exchange = node.open(request(node, X_Request_ID=given))
        assert exchange.status == 200
        assert exchange.headers["x-request-id"].isalnum()


class TestRoutes:
    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("GET", "/generate", "POST"),
            ("PUT", "/generate", "POST"),
            ("DELETE", "/generate", "POST"),
            ("TRACE", "/generate", "POST"),
            ("GET", "/benchmark", "POST"),
            ("GET", "/keys/generate", "POST"),
            ("POST", "/health", "GET"),
            ("POST", "/metrics", "GET"),
            ("PATCH", "/openapi.json", "GET"),
        ],
    )
    def test_another_method_is_405_with_what_is_allowed(
        self, service: Node, method: str, path: str, allow: str
    ) -> None:
        exchange = service.open(request(service, method, path))
        error = refused(exchange, 405)
        assert error["error"] == "method_not_allowed"
        assert allow in exchange.headers["allow"].split(", ")
        assert allow in error["detail"]

    def test_head_is_answered_without_a_body(self, service: Node) -> None:
        exchange = service.open(request(service, "HEAD", "/generate", b""))
        assert exchange.status == 405
        exchange.send(request(service, "GET", "/live", b""))
        assert exchange.following().status == 200

    def test_options_tells_what_is_allowed(self, service: Node) -> None:
        exchange = service.open(request(service, "OPTIONS", "/generate", b""))
        assert (exchange.status, exchange.headers["allow"]) == (200, "POST")

    @pytest.mark.parametrize(
        "path", ["/nope", "/generate/", "/generate/x", "/GENERATE", "/%00", "/%ff", "/../etc/passwd"]
    )
    def test_an_unknown_route_is_404_with_the_way_to_the_known(self, service: Node, path: str) -> None:
        error = refused(service.open(request(service, "GET", path, b"")), 404)
        assert error["error"] == "not_found"
        assert "/openapi.json" in error["detail"]


Keys = Callable[[Node], dict[str, str | None]]


def revoked(node: Node) -> str:
    key = node.make_key("revoked")
    node.command("keys", "revoke", key.split("_")[1]).check_returncode()
    return key


def expired(node: Node) -> str:
    store = KeyStore(node.folder / "api_keys.db", node.env["API_KEY_PEPPER"].encode())
    try:
        return str(store.issue("expired", expires_at=time.time() - 60).api_key)
    finally:
        store.close()


class TestKeys:
    @pytest.mark.parametrize("path", ["/generate", "/benchmark"])
    @pytest.mark.parametrize(
        ("headers", "reason"),
        [
            pytest.param(lambda node: {"X_API_Key": None}, "missing", id="none"),
            pytest.param(lambda node: {"X_API_Key": ""}, "missing", id="empty"),
            pytest.param(lambda node: {"X_API_Key": None, "Authorization": "Basic dTpw"}, "missing", id="Basic"),
            pytest.param(lambda node: {"X_API_Key": None, "Authorization": "Bearer "}, "missing", id="empty Bearer"),
            pytest.param(lambda node: {"X_API_Key": "secret"}, "malformed", id="malformed"),
            pytest.param(lambda node: {"X_API_Key": node.key[:-1]}, "malformed", id="too short"),
            pytest.param(lambda node: {"X_API_Key": node.key + "A"}, "malformed", id="too long"),
            pytest.param(lambda node: {"X_API_Key": node.key.upper()}, "malformed", id="upper case"),
            pytest.param(lambda node: {"X_API_Key": "k" * 10_000}, "malformed", id="of 10 kB"),
            pytest.param(lambda node: {"X_API_Key": "pk_" + "\xe9" * 56}, "malformed", id="not ASCII"),
            pytest.param(lambda node: {"Authorization": "Bearer pk_other"}, "malformed", id="both, different"),
            pytest.param(lambda node: {"X_API_Key": f"pk_{'0' * 12}_{'A' * 43}"}, "unknown", id="unknown"),
            pytest.param(lambda node: {"X_API_Key": node.key[:16] + "A" * 43}, "unknown", id="another's id"),
        ],
    )  # fmt: skip
    def test_no_good_key_is_401(self, service: Node, path: str, headers: Keys, reason: str) -> None:
        exchange = service.open(request(service, path=path, **headers(service)))
        error = refused(exchange, 401)
        assert (error["error"], error["reason"]) == ("unauthenticated", reason)
        assert exchange.headers["www-authenticate"].startswith("Bearer")

    @pytest.mark.parametrize("make", [revoked, expired])
    def test_a_key_that_is_over_is_401_and_says_so(self, service: Node, make: Callable[[Node], str]) -> None:
        key = make(service)
        wait_until(
            lambda: make.__name__ in str(service.open(request(service, X_API_Key=key)).json()),
            "the ring has looked",
            deadline_s=2,
        )
        error = refused(service.open(request(service, X_API_Key=key)), 401)
        assert error["reason"] == make.__name__
        assert key not in error["detail"]

    def test_the_key_is_judged_before_the_body(self, service: Node) -> None:
        refused(service.open(request(service, X_API_Key=None, Content_Length="1000")), 401)

    def test_no_key_is_ever_in_the_log(self, service: Node) -> None:
        key = f"pk_{'0' * 12}_{'B' * 43}"
        service.open(request(service, X_API_Key=key)).json()
        assert key[16:] not in service.log
        assert service.key[16:] not in service.log


class TestOwners:
    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            pytest.param(b"{}", 422, "owner", id="none"),
            pytest.param(b'{"owner": ""}', 422, "owner", id="empty"),
            pytest.param(b'{"owner": 5}', 422, "owner", id="a number"),
            pytest.param(json.dumps({"owner": "x" * 101}).encode(), 422, "owner", id="of 101"),
            pytest.param(b'{"owner": "a\\u0000"}', 422, "owner", id="NUL"),
            pytest.param(b'{"owner": "a\\nb"}', 422, "owner", id="newline"),
            pytest.param(b'{"owner": "\\u001b[31m"}', 422, "owner", id="escape"),
            pytest.param(b'{"owner": "\\ud800"}', 422, "owner", id="surrogate"),
            pytest.param(b'{"owner": "x", "admin": true}', 422, "admin", id="unknown field"),
            pytest.param(b"owner", 400, None, id="not JSON"),
        ],
    )
    def test_a_bad_owner_gets_no_key(self, service: Node, body: bytes, status: int, field: str | None) -> None:
        error = refused(service.open(request(service, path="/keys/generate", body=body)), status)
        assert error.get("field") == field
