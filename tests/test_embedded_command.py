"""`appliance engine` starts, ends and refuses to start as it should."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from embedded_process import running_engine

from appliance.commands import engine
from appliance.embedded import llama, weights
from appliance.embedded.errors import SetupProblem


@pytest.fixture(autouse=True)
def _no_engine_starts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not request.node.get_closest_marker("tier2"):
        monkeypatch.setattr(llama, "library", lambda: None)


def refusal(*options: str) -> str:
    result = CliRunner().invoke(engine.command, options)
    assert result.exit_code in (1, 2)
    return result.output


def test_a_model_option_of_the_wrong_form_is_refused() -> None:
    assert "NAME:TAG=FILE.gguf" in refusal("--model", "smollm2")


def test_a_wrong_keep_alive_is_refused_with_what_is_allowed() -> None:
    assert "write it as 5m, 1h30m, or seconds" in refusal("--keep-alive", "soon")


def test_a_model_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    assert "is not a GGUF file" in refusal("--model", f"x={tmp_path / 'x.gguf'}")


def test_what_hinders_fetching_is_one_sentence_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> Path:
        raise SetupProblem("the model could not be downloaded; check the network")

    monkeypatch.setattr(weights, "ensure", no_network)
    result = CliRunner().invoke(engine.command, ["--fetch-only"])
    assert (result.exit_code, result.output) == (1, "Error: the model could not be downloaded; check the network\n")


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        (ModuleNotFoundError("No module named 'xllamacpp'", name="xllamacpp"), "-m pip install '.[embedded]'"),
        (ImportError("libgomp.so.1: cannot open shared object file"), "sudo apt-get install libgomp1"),
        (ImportError("GLIBC_2.99 not found"), "does not work on this machine (GLIBC_2.99 not found)"),
    ],
)
def test_a_library_that_does_not_load_is_one_sentence_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, problem: ImportError, remedy: str
) -> None:
    monkeypatch.undo()

    def fails(name: str) -> None:
        raise problem

    monkeypatch.setattr(llama, "import_module", fails)
    output = refusal("--fetch-only")
    assert remedy in output
    assert output.count("\n") == 1


@pytest.mark.tier2
def test_a_taken_port_is_named_with_the_way_to_choose_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(engine.command, ["--port", str(port)])
    assert result.exit_code == 1
    assert f"port {port} on 127.0.0.1 is taken" in result.output
    assert "--port" in result.output


@pytest.mark.tier2
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_even_while_it_streams(signum: signal.Signals) -> None:
    body = json.dumps({"model": weights.NAME, "prompt": "Count", "options": {"num_predict": 5000}}).encode()
    with running_engine() as running, socket.create_connection(("127.0.0.1", running.port), timeout=60) as stream:
        stream.sendall(b"POST /api/generate HTTP/1.1\r\nHost: x.local\r\nContent-Length: %d\r\n\r\n" % len(body))
        stream.sendall(body)
        assert stream.recv(15) == b"HTTP/1.1 200 OK"
        running.process.send_signal(signum)
        assert running.process.wait(timeout=30) == 0


@pytest.mark.tier2
def test_another_model_file_is_served_under_the_name_given() -> None:
    with running_engine("--model", f"mine:small={weights.ensure()}") as running:
        assert running.stop() == 0
