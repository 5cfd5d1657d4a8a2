"""The module `ollama_model`: a model pulled within bounds, by its digest or not at all, and how far it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "ansible" / "library"))
import ollama_model
from ollama_model import Ollama, PullFailed

PINNED, OTHER = "357c53fb" * 8, "ab" * 32
LAYER = {"digest": "sha256:" + "5e" * 32, "total": 1929903008}
PULL = [
    {"status": "pulling manifest"},
    {"status": "pulling 5eeeeeeeeeee", **LAYER},
    {"status": "pulling 5eeeeeeeeeee", **LAYER, "completed": 964951504},
    {"status": "verifying sha256 digest"},
    {"status": "writing manifest"},
    {"status": "success"},
]


class FakeOllama:
    """Ollama's exact words, with knobs: which models there are, what a pull says and brings, whether it hangs."""

    def __init__(self) -> None:
        self.models: dict[str, str] = {}
        self.says: list[dict[str, Any]] = PULL
        self.comes = PINNED
        self.falls_silent = False
        self.calls: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def _body(self) -> dict[str, Any]:
                return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

            def _answer(self, status: int, *records: dict[str, Any]) -> None:
                self.send_response(status)
                self.end_headers()
                for record in records:
                    self.wfile.write(json.dumps(record).encode() + b"\n")

            def do_GET(self) -> None:
                rows = [{"name": name, "model": name, "digest": digest} for name, digest in fake.models.items()]
                self._answer(200, {"models": rows})

            def do_DELETE(self) -> None:
                name = self._body()["model"]
                fake.calls.append(f"delete {name}")
                self._answer(200 if fake.models.pop(name, None) else 404)

            def do_POST(self) -> None:
                body = self._body()
                if self.path == "/api/copy":
                    fake.calls.append(f"copy {body['source']} {body['destination']}")
                    fake.models[body["destination"]] = fake.models[body["source"]]
                    return self._answer(200)
                fake.calls.append(f"pull {body['model']}")
                if fake.says[-1].get("status") == "success":
                    fake.models[body["model"]] = fake.comes
                self._answer(200, *fake.says)
                if fake.falls_silent:
                    self.wfile.flush()
                    self.rfile.read(1)  # until the client leaves
                return None

        return Handler


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    ollama = FakeOllama()
    thread = Thread(target=ollama.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield ollama
    ollama.server.shutdown()
    thread.join()
    ollama.server.server_close()


def apply(fake: FakeOllama, check_mode: bool = False, **wanted: Any) -> dict[str, Any]:
    given = {
        "name": "qwen2.5:3b",
        "state": "present",
        "digest": "",
        "timeout_s": 60,
        "stall_timeout_s": 60,
        "progress": None,
        "remove_others": False,
    }
    return ollama_model.apply(Ollama(fake.port), {**given, **wanted}, check_mode)


def test_a_model_that_is_missing_is_pulled(fake: FakeOllama) -> None:
    assert apply(fake) == {"changed": True, "digest": PINNED, "removed": []}
    assert fake.calls == ["pull qwen2.5:3b"]


def test_a_model_that_is_there_is_left_alone(fake: FakeOllama) -> None:
    fake.models = {"qwen2.5:3b": PINNED}
    assert apply(fake, digest=PINNED)["changed"] is False
    assert apply(fake, name="registry.ollama.ai/library/qwen2.5:3b")["changed"] is False
    assert fake.calls == []


def test_a_wrong_digest_is_an_error_and_nothing_is_kept(fake: FakeOllama) -> None:
    fake.comes = OTHER
    with pytest.raises(PullFailed, match=f"came with the digest {OTHER}, and model_digest pins {PINNED}"):
        apply(fake, digest=PINNED)
    assert fake.models == {}


def test_what_was_there_before_a_wrong_digest_came_is_there_again(fake: FakeOllama) -> None:
    before = "cd" * 32
    fake.models, fake.comes = {"qwen2.5:3b": before}, OTHER
    with pytest.raises(PullFailed, match="was not kept"):
        apply(fake, digest=PINNED)
    assert fake.models == {"qwen2.5:3b": before}


def test_a_model_that_the_registry_still_gives_is_not_removed_for_a_wrong_pin(fake: FakeOllama) -> None:
    fake.models, fake.comes = {"qwen2.5:3b": OTHER}, OTHER
    with pytest.raises(PullFailed, match="or the pin has a mistake"):
        apply(fake, digest=PINNED)
    assert fake.models == {"qwen2.5:3b": OTHER}


def test_a_model_that_was_published_anew_takes_the_place_of_the_old(fake: FakeOllama) -> None:
    fake.models = {"qwen2.5:3b": OTHER}
    assert apply(fake, digest=PINNED)["digest"] == PINNED
    assert fake.models == {"qwen2.5:3b": PINNED}


def test_a_name_with_a_typo_is_said_to_be_one(fake: FakeOllama) -> None:
    fake.says = [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
    with pytest.raises(PullFailed, match=r"There is no model qwen2\.5:3bb: is model_name spelled right"):
        apply(fake, name="qwen2.5:3bb")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("max retries exceeded: write: no space left on device", "Make room and run again"),
        ('Get "https://registry": dial tcp: lookup registry: no such host', "set model_source to controller or node"),
        ("something new", "could not pull qwen2.5:3b: something new"),
    ],
)
def test_an_error_of_a_pull_comes_with_its_remedy(fake: FakeOllama, error: str, remedy: str) -> None:
    fake.says = [{"error": error}]
    with pytest.raises(PullFailed, match=remedy):
        apply(fake)


def test_a_pull_that_falls_silent_is_given_up(fake: FakeOllama) -> None:
    fake.says, fake.falls_silent = PULL[:3], True
    with pytest.raises(PullFailed, match=r"said nothing for 0\.1 s .* it goes on where it stopped"):
        apply(fake, stall_timeout_s=0.1)


def test_a_pull_that_goes_on_too_long_is_given_up(fake: FakeOllama) -> None:
    ticks = iter(range(0, 10000, 40))
    wanted = {"name": "qwen2.5:3b", "timeout_s": 60, "stall_timeout_s": 60, "progress": None}
    with pytest.raises(PullFailed, match="was not done within 60 s"):
        ollama_model.follow(Ollama(fake.port), wanted, lambda: next(ticks))


def test_a_pull_that_ends_without_success_failed(fake: FakeOllama) -> None:
    fake.says = PULL[:4]
    with pytest.raises(PullFailed, match="ended without success"):
        apply(fake)


def test_how_far_a_pull_is_stands_in_a_file(tmp_path: Path) -> None:
    progress = ollama_model.Progress(str(tmp_path / "run" / "model.json"), "qwen2.5:3b", lambda: 0.0)
    for record in PULL[:2]:
        progress.note(record)
    shown = json.loads((tmp_path / "run" / "model.json").read_text())
    assert (shown["status"], shown["completed_bytes"], shown["percent"]) == ("pulling 5eeeeeeeeeee", 0, 0.0)
    for record in PULL[2:]:
        progress.note(record)
    shown = json.loads((tmp_path / "run" / "model.json").read_text())
    assert (shown["status"], shown["percent"], shown["total_bytes"]) == ("success", 100.0, 1929903008)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model.json"]


def test_the_file_is_written_once_a_second_while_nothing_new_happens(tmp_path: Path) -> None:
    now = [0.0]
    progress = ollama_model.Progress(str(tmp_path / "model.json"), "qwen2.5:3b", lambda: now[0])
    progress.note(PULL[1])
    for now[0], percent in ((0.5, 0.0), (1.5, 50.0)):
        progress.note(PULL[2])
        assert json.loads((tmp_path / "model.json").read_text())["percent"] == percent


def test_check_mode_says_what_would_be_pulled_even_where_no_ollama_runs(fake: FakeOllama) -> None:
    assert apply(fake, check_mode=True)["msg"] == "would pull qwen2.5:3b"
    fake.port = 1  # nobody listens there
    assert apply(fake, check_mode=True)["changed"] is True
    assert fake.calls == []


def test_without_ollama_the_error_says_where_to_look(fake: FakeOllama) -> None:
    fake.port = 1
    with pytest.raises(PullFailed, match=r"does not answer on 127\.0\.0\.1:1 .*journalctl -u ollama"):
        apply(fake)


def test_a_model_is_removed_once(fake: FakeOllama) -> None:
    fake.models = {"qwen2.5:3b": PINNED}
    assert apply(fake, state="absent") == {"changed": True, "digest": "", "removed": ["qwen2.5:3b"]}
    assert apply(fake, state="absent")["changed"] is False


def test_other_models_stay_unless_told(fake: FakeOllama) -> None:
    fake.models = {"qwen2.5:3b": PINNED, "llama3.2:3b": OTHER}
    assert apply(fake)["changed"] is False
    assert apply(fake, check_mode=True, remove_others=True)["msg"] == "would remove llama3.2:3b"
    assert apply(fake, remove_others=True)["removed"] == ["llama3.2:3b"]
    assert fake.models == {"qwen2.5:3b": PINNED}
