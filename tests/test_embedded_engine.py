"""The embedded engine answers as Ollama does: the real model, the official client, and raw bytes.

The expected counts and texts of errors are captures of Ollama 0.33 with the same model file.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
import requests
from embedded_process import EngineProcess, running_engine

pytestmark = pytest.mark.tier2

MODEL = "smollm2:135m"
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 2000}  # no way to end before 4000 tokens
PATIENCE_S = 60  # only ever used up by a failing test


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    with running_engine("--parallel", "2", "--num-ctx", "512") as engine:
        yield engine


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[ollama.Client]:
    with ollama.Client(host=engine.url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


def post(engine: EngineProcess, path: str, **body: Any) -> requests.Response:
    return requests.post(engine.url + path, json={"model": MODEL, **body}, timeout=PATIENCE_S)


def connect(engine: EngineProcess, path: str, **body: Any) -> socket.socket:
    """A request whose answer is read as raw bytes."""
    data = json.dumps({"model": MODEL, **body}).encode()
    connection = socket.create_connection(("127.0.0.1", engine.port), timeout=PATIENCE_S)
    connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % path.encode())
    connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
    return connection


def read_until(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        more = connection.recv(65536)
        assert more, f"the connection ended after {data[-200:]!r}"
        data += more
    return data


def endless(engine: EngineProcess) -> socket.socket:
    """A stream that has begun and will not end by itself."""
    connection = connect(engine, "/api/generate", prompt="Count", format=ENDLESS)
    read_until(connection, b'"done":false')
    return connection


class TestGeneration:
    def test_it_counts_prompt_and_answer_as_ollama_does(self, client: ollama.Client) -> None:
        answer = client.generate(MODEL, "Why is the sky blue?", format=ENDLESS, options={"num_predict": 16})
        assert (answer.prompt_eval_count, answer.eval_count, answer.done_reason) == (15, 16, "length")

    def test_a_system_prompt_is_counted_too(self, client: ollama.Client) -> None:
        answer = client.generate(MODEL, "Why is the sky blue?", system="You are brief.", options={"num_predict": 1})
        assert (answer.prompt_eval_count, answer.eval_count) == (24, 1)

    def test_a_chat_is_counted_too(self, client: ollama.Client) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        answer = client.chat(MODEL, messages, format=ENDLESS, options={"num_predict": 3})
        assert (answer.prompt_eval_count, answer.eval_count, answer.message.role) == (10, 3, "assistant")

    def test_an_answer_that_ends_by_itself_says_stop(self, client: ollama.Client) -> None:
        answer = client.generate(MODEL, "Is water wet?", format={"enum": ["yes", "no"]})
        assert answer.done_reason == "stop"
        assert json.loads(answer.response) in ("yes", "no")

    def test_a_stop_string_ends_it_and_is_not_part_of_it(self, client: ollama.Client) -> None:
        answer = client.generate(MODEL, "x", format={"const": "one two three"}, options={"stop": ["two"]})
        assert (answer.response, answer.done_reason) == ('"one ', "stop")

    def test_every_token_is_its_own_record_and_the_last_one_has_the_counts(self, client: ollama.Client) -> None:
        stream = client.generate(MODEL, "Count", stream=True, format=ENDLESS, options={"num_predict": 12})
        records = list(stream)
        assert len(records) == 13
        assert [record.done for record in records] == [False] * 12 + [True]
        assert records[-1].eval_count == 12

    def test_characters_of_several_tokens_arrive_whole(self, client: ollama.Client) -> None:
        text = "héllo 🦊 漢字"
        records = [r.response for r in client.generate(MODEL, "x", format={"const": text}, stream=True)]
        assert "".join(records) == f'"{text}"'
        assert not any("\ufffd" in piece for piece in records)

    def test_the_same_seed_gives_the_same_text(self, client: ollama.Client) -> None:
        options = {"num_predict": 12, "seed": 7, "temperature": 1.0}
        texts = [client.generate(MODEL, "Tell me of the sea.", options=options).response for _ in range(3)]
        assert texts[1] == texts[2]  # the first one's prompt was not in the cache, which may change the last bits


class TestRecords:
    def test_context_is_the_whole_conversations_tokens_and_can_go_on(self, engine: EngineProcess) -> None:
        first = post(engine, "/api/generate", prompt="Hi", stream=False, options={"num_predict": 4}).json()
        assert len(first["context"]) > first["prompt_eval_count"]
        second = post(
            engine, "/api/generate", prompt="Hi", stream=False, context=first["context"], options={"num_predict": 1}
        ).json()
        assert second["prompt_eval_count"] == len(first["context"]) + first["prompt_eval_count"]

    def test_chat_and_raw_have_no_context(self, engine: EngineProcess) -> None:
        few = {"stream": False, "options": {"num_predict": 1}}
        chat = post(engine, "/api/chat", messages=[{"role": "user", "content": "Hi"}], **few).json()
        raw = post(engine, "/api/generate", prompt="Hi", raw=True, **few).json()
        assert "context" not in chat
        assert "context" not in raw

    def test_what_is_zero_is_left_out(self, engine: EngineProcess) -> None:
        loaded = post(engine, "/api/generate").json()
        assert list(loaded) == ["model", "created_at", "response", "done", "done_reason"]
        assert loaded["done_reason"] == "load"

    def test_fields_come_in_ollamas_order(self, engine: EngineProcess) -> None:
        answer = post(engine, "/api/generate", prompt="Hi", stream=False, options={"num_predict": 2}).json()
        head = ["model", "created_at", "response", "done", "done_reason", "context"]
        durations = ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration"]
        assert list(answer) == [*head, *durations, "eval_count", "eval_duration"]

    def test_durations_fit_into_the_total(self, engine: EngineProcess) -> None:
        answer = post(engine, "/api/generate", prompt="Hi", stream=False, options={"num_predict": 8}).json()
        parts = answer["load_duration"] + answer["prompt_eval_duration"] + answer["eval_duration"]
        assert 0 < parts <= answer["total_duration"]


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "status", "text"),
        [
            ({"model": "nope:1b"}, 404, "model 'nope:1b' not found"),
            ({"model": "a b"}, 400, "invalid model name"),
            ({"options": {"num_ctx": "512"}}, 500, 'option "num_ctx" must be of type integer'),
            ({"think": True}, 400, '"smollm2:135m" does not support thinking'),
            ({"suffix": "y"}, 400, "registry.ollama.ai/library/smollm2:135m does not support insert"),
            ({"raw": True, "system": "y"}, 400, "raw mode does not support template, system, or context"),
            ({"format": "xml"}, 500, r'invalid format: "\"xml\""; expected "json" or a valid JSON Schema object'),
            ({"keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ],
    )
    @pytest.mark.parametrize("streams", [True, False])
    def test_each_has_ollamas_status_and_text(
        self, engine: EngineProcess, body: dict[str, Any], status: int, text: str, streams: bool
    ) -> None:
        answer = post(engine, "/api/generate", **{"prompt": "x", "stream": streams, **body})
        assert (answer.status_code, answer.json()) == (status, {"error": text})

    def test_the_official_client_raises_its_own_error(self, client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as refused:
            client.generate("nope", "x")
        assert refused.value.status_code == 404

    def test_tools_are_refused(self, engine: EngineProcess) -> None:
        answer = post(engine, "/api/chat", messages=[{"role": "user", "content": "x"}], tools=[{"type": "function"}])
        assert answer.json() == {"error": "registry.ollama.ai/library/smollm2:135m does not support tools"}

    def test_routes_and_methods_that_are_not_there(self, engine: EngineProcess) -> None:
        assert requests.get(engine.url + "/nothing", timeout=PATIENCE_S).text == "404 page not found"
        refused = requests.get(engine.url + "/api/generate", timeout=PATIENCE_S)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")

    @pytest.mark.parametrize("header", [{"Host": "evil.example.com"}, {"Origin": "http://evil.example.com"}])
    def test_a_foreign_host_or_origin_gets_an_empty_403(self, engine: EngineProcess, header: dict[str, str]) -> None:
        answer = requests.get(engine.url + "/api/version", headers=header, timeout=PATIENCE_S)
        assert (answer.status_code, answer.content) == (403, b"")

    def test_a_body_of_unknown_or_absurd_length_is_refused(self, engine: EngineProcess) -> None:
        for header, status in ((b"Transfer-Encoding: chunked", b"411"), (b"Content-Length: 99999999999", b"413")):
            with socket.create_connection(("127.0.0.1", engine.port), timeout=PATIENCE_S) as connection:
                connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 " + status)


class TestLongPrompts:
    PROMPT = " word" * 900

    def test_truncate_false_gives_llama_servers_own_400_with_the_numbers(self, engine: EngineProcess) -> None:
        for streams in (True, False):
            answer = post(engine, "/api/generate", prompt=self.PROMPT, raw=True, truncate=False, stream=streams)
            assert answer.status_code == 400
            error = json.loads(answer.json()["error"])["error"]
            assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 900, 512)

    def test_by_default_it_is_cut_to_half_the_context(self, engine: EngineProcess) -> None:
        body = {"prompt": self.PROMPT, "raw": True, "stream": False, "options": {"num_predict": 1}}
        assert post(engine, "/api/generate", **body).json()["prompt_eval_count"] == 258

    def test_shift_false_reloads_and_refuses_it(self, engine: EngineProcess) -> None:
        answer = post(engine, "/api/generate", prompt=self.PROMPT, shift=False)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("the prompt is longer than the context length")

    def test_shift_false_ends_at_the_end_of_the_context_and_shift_goes_on(self, engine: EngineProcess) -> None:
        body = {"prompt": " word" * 480, "raw": True, "stream": False, "format": ENDLESS}
        stopped = post(engine, "/api/generate", shift=False, options={"num_predict": 60}, **body).json()
        shifted = post(engine, "/api/generate", options={"num_predict": 60}, **body).json()
        assert stopped["done_reason"] == shifted["done_reason"] == "length"
        assert stopped["eval_count"] <= 512 - 480 < shifted["eval_count"] == 60

    def test_old_messages_are_dropped_before_the_last_one_is_cut(self, engine: EngineProcess) -> None:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": self.PROMPT},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "Hi"},
        ]
        answer = post(engine, "/api/chat", messages=messages, stream=False, options={"num_predict": 1})
        assert answer.json()["prompt_eval_count"] == 25


class TestLoading:
    def test_load_and_unload_are_seen_in_ps(self, client: ollama.Client) -> None:
        assert client.generate(MODEL, keep_alive=0).done_reason == "unload"
        assert client.ps().models == []
        assert client.generate(MODEL).done_reason == "load"
        (loaded,) = client.ps().models
        assert (loaded.model, loaded.context_length, loaded.size_vram) == (MODEL, 512, 0)

    def test_another_num_ctx_reloads_and_the_same_does_not(self, client: ollama.Client) -> None:
        def generate(num_ctx: int) -> int:
            answer = client.generate(MODEL, "Hi", options={"num_ctx": num_ctx, "num_predict": 1})
            assert client.ps().models[0].context_length == num_ctx
            assert answer.load_duration is not None
            return answer.load_duration

        generate(256)
        warm, reload = generate(256), generate(320)
        assert reload > 10 * warm

    def test_keep_alive_negative_is_for_ever(self, engine: EngineProcess) -> None:
        post(engine, "/api/generate", keep_alive=-1)
        (loaded,) = requests.get(engine.url + "/api/ps", timeout=PATIENCE_S).json()["models"]
        assert int(loaded["expires_at"][:4]) > 2300

    def test_keep_alive_zero_unloads_after_the_answer(self, engine: EngineProcess) -> None:
        post(engine, "/api/generate", prompt="Hi", keep_alive=0, stream=False, options={"num_predict": 1})
        assert requests.get(engine.url + "/api/ps", timeout=PATIENCE_S).json() == {"models": []}


class TestStreams:
    def test_two_run_at_once_and_a_third_waits_without_a_single_byte(self, engine: EngineProcess) -> None:
        with endless(engine) as first, endless(engine) as second:
            with connect(engine, "/api/generate", prompt="Hi", options={"num_predict": 2}) as third:
                read_until(first, b'"done":false')
                read_until(second, b'"done":false')
                assert select.select([third], [], [], 0) == ([], [], [])
                first.close()
                assert read_until(third, b'"done":true').startswith(b"HTTP/1.1 200 OK\r\n")
            read_until(second, b'"done":false')

    def test_one_clients_leaving_does_not_disturb_another(self, client: ollama.Client, engine: EngineProcess) -> None:
        stream = client.generate(MODEL, "Count", stream=True, format=ENDLESS, options={"num_predict": 60})
        next(stream)
        endless(engine).close()
        endless(engine).close()
        assert list(stream)[-1].eval_count == 60

    def test_one_who_leaves_while_it_waits_is_forgotten(self, engine: EngineProcess) -> None:
        with endless(engine) as first, endless(engine):
            connect(engine, "/api/generate", prompt="Hi").close()
            with connect(engine, "/api/generate", prompt="Hi", options={"num_predict": 1}) as last:
                first.close()
                read_until(last, b'"done":true')

    def test_tokens_leave_one_by_one(self, engine: EngineProcess) -> None:
        with connect(engine, "/api/generate", prompt="Hi", format=ENDLESS, options={"num_predict": 10}) as stream:
            answer = read_until(stream, b"0\r\n\r\n")
        records = [line for line in answer.split(b"\r\n") if line.startswith(b"{")]
        assert len(records) == 11
        assert all(record.count(b"\n") == 1 for record in records)

    def test_an_http_1_0_client_gets_no_chunks(self, engine: EngineProcess) -> None:
        body = json.dumps({"model": MODEL, "prompt": "Hi", "format": ENDLESS, "options": {"num_predict": 2}}).encode()
        with socket.create_connection(("127.0.0.1", engine.port), timeout=PATIENCE_S) as connection:
            connection.sendall(b"POST /api/generate HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        records = answer.partition(b"\r\n\r\n")[2].splitlines()
        assert [json.loads(record)["done"] for record in records] == [False, False, True]


class TestModels:
    def test_it_never_claims_to_be_ollama(self, engine: EngineProcess) -> None:
        version = requests.get(engine.url + "/api/version", timeout=PATIENCE_S).json()["version"]
        assert version.startswith("0.0.0-embedded")

    @pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
    def test_head_is_get_without_the_body(self, engine: EngineProcess, path: str) -> None:
        head, get = (getattr(requests, method)(engine.url + path, timeout=PATIENCE_S) for method in ("head", "get"))
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(get.content))

    def test_tags_and_show_tell_of_the_model(self, client: ollama.Client) -> None:
        (listed,) = client.list().models
        assert listed.model == MODEL
        assert listed.details is not None
        assert (listed.details.parameter_size, listed.details.quantization_level) == ("134.52M", "Q4_1")
        shown = client.show(MODEL)
        assert shown.capabilities == ["completion"]
        assert shown.modelinfo is not None
        assert shown.modelinfo["llama.context_length"] == 8192

    def test_show_of_an_unknown_model_is_a_404(self, client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="model 'nope:latest' not found"):
            client.show("nope")

    def test_pull_of_the_model_it_has_goes_through(self, client: ollama.Client) -> None:
        steps = [step.status for step in client.pull(MODEL, stream=True)]
        assert (steps[0], steps[-1]) == ("pulling manifest", "success")
        assert client.pull(MODEL).status == "success"

    def test_pull_of_another_model_fails_as_ollamas_does(self, client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="pull model manifest: file does not exist"):
            client.pull("qwen2.5:3b")
