"""`appliance demo`: the embedded engine, the appliance in front of it, a key, and one answer token by token."""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from appliance.commands.profile import VARIABLE

HOST = "127.0.0.1"
MODEL = "smollm2:135m"
PROMPT = "Explain gravity in one sentence."
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
PORT = click.IntRange(1, 65535)
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# The settings of the demo's node: a model this small on a machine that does other things too.
SETTINGS = {
    "HOST": HOST,
    "OLLAMA_MODEL": MODEL,
    "OLLAMA_KEEP_ALIVE": "30m",
    "N_CTX": "1024",
    "N_THREADS": "1",
    "N_BATCH": "64",
    "MAX_TOKENS": "96",
    "MAX_CONCURRENT_REQUESTS": "2",
    "KEY_ISSUANCE": "local",
    "API_KEYS_DB": "api_keys.db",
    "DRAIN_S": "3",
    "LOG_LEVEL": "info",
}


class DemoFailed(click.ClickException):
    """Something of the demo did not come up; the message says what, and where its log is."""


@click.command()
@click.option("--port", default=8000, show_default=True, type=PORT, help="The appliance's port.")
@click.option("--engine-port", default=11434, show_default=True, type=PORT, help="The engine's port.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(".demo"),
    show_default=True,
    help="Where key, database and logs go.",
)
@click.option("--once", is_flag=True, help="End after the answer.")
@click.option("--down", is_flag=True, help="End a demo that runs in the folder.")
def command(port: int, engine_port: int, folder: Path, once: bool, down: bool) -> None:
    """Run the embedded engine and the appliance on this machine, issue a key and stream one answer.

    Then serves until Ctrl-C, SIGTERM or `appliance demo --down`. Everything it makes is in --dir.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pid_file = PidFile(folder / "demo.pid")
    if down:
        _end_running(pid_file)
        return
    with ExitStack() as stack:
        if not stack.enter_context(pid_file.held()):
            raise DemoFailed("a demo runs already in this folder; `make demo-down` ends it.")
        if port == engine_port:
            raise DemoFailed(f"port {port} cannot serve both; choose another: make demo ENGINE_PORT={_free_port()}")
        _refuse_taken(port, "the appliance", "PORT")
        _refuse_taken(engine_port, "the engine", "ENGINE_PORT")
        _fetch_model()
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            _run(stack, port, engine_port, folder, once)
        except KeyboardInterrupt:
            click.echo("\nstopping; running answers get 3 seconds …")
        except BrokenPipeError:  # the terminal that read us has gone
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class PidFile:
    """Names the demo that runs in a folder: it holds a lock on the file, which ends with it whatever ends it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether this process could take the lock; it has it for as long as the block lasts."""
        with self._path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield True

    def read(self) -> int | None:
        """The demo's process; None where none runs."""
        try:
            with self._path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            text = self._path.read_text().strip()
            return int(text) if text else None  # locked, and not written yet: as if it were not there yet
        return None


def _run(stack: ExitStack, port: int, engine_port: int, folder: Path, once: bool) -> None:
    click.echo(f"engine     {MODEL}, a small real model, behind Ollama's API on port {engine_port} (it is not Ollama)")
    engine = stack.enter_context(_process(folder / "engine.log", ["engine", "--port", str(engine_port)], {}, folder))
    _wait_for(engine, engine_port, "/api/version", folder / "engine.log")
    click.echo(f"appliance  http://{HOST}:{port}")
    settings = {**SETTINGS, "PORT": str(port), "OLLAMA_PORT": str(engine_port)}
    appliance = stack.enter_context(_process(folder / "appliance.log", ["serve"], settings, folder))
    _wait_for(appliance, port, "/ready", folder / "appliance.log")
    key = _issue_key(port)
    _write_secret(folder / "key", key)
    click.echo(f"key        {key}   (also in {folder / 'key'})\n")
    _show_answer(port, key)
    if once:
        return
    click.echo(f"\nServing on http://{HOST}:{port} until Ctrl-C (or `make demo-down`). In another terminal:\n")
    click.echo(f'  curl -N http://localhost:{port}/generate -H "X-API-Key: $(cat {folder / "key"})" \\')
    click.echo("""    -H "Content-Type: application/json" -d '{"prompt": "Write a haiku about the sea."}'\n""")
    while appliance.poll() is None and engine.poll() is None:
        time.sleep(POLL_S * 10)
    raise DemoFailed(f"a part of the demo has ended by itself; the logs are in {folder}.")


def _show_answer(port: int, key: str) -> None:
    click.secho(f"> {PROMPT}", bold=True)
    for event, data in _events(port, key):
        if event == "token":
            click.echo(data["token"], nl=False)
        elif event == "error":
            raise DemoFailed(data["detail"])
        elif event == "done":
            click.echo(
                f"\n\n{data['completion_tokens']} tokens, the first after {data['ttft_ms']:.0f} ms, "
                f"then {data['tokens_per_second'] or 0:.0f} a second ({data['finish_reason']})"
            )


def _events(port: int, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of one answer, as they come."""
    connection = http.client.HTTPConnection(HOST, port, timeout=START_TIMEOUT_S)
    headers = {"Content-Type": "application/json", "X-API-Key": key}
    connection.request("POST", "/generate", json.dumps({"prompt": PROMPT}), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise DemoFailed(f"the appliance answered {response.status}: {response.read().decode()}")
    event = ""
    for line in response:
        name, _, value = line.decode().strip().partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            yield event, json.loads(value)
    connection.close()


def _issue_key(port: int) -> str:
    connection = http.client.HTTPConnection(HOST, port, timeout=START_TIMEOUT_S)
    body = json.dumps({"owner": "demo"})
    connection.request("POST", "/keys/generate", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise DemoFailed(f"no key: {answer['detail']}")
    return str(answer["api_key"])


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


@contextmanager
def _process(
    log: Path, arguments: list[str], settings: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """One part of the demo, in a session of its own so that Ctrl-C reaches it through us, in order.

    It ends with us even where we are killed: the kernel then sends it SIGTERM.
    """
    libc = ctypes.CDLL(None)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own program
            [sys.executable, "-m", "appliance", *arguments],
            cwd=folder,
            env={**os.environ, VARIABLE: "", **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _fetch_model() -> None:
    """The model's download, once a machine; the engine tells of it on standard error, and where it is on the other."""
    fetch = [sys.executable, "-m", "appliance", "engine", "--fetch-only"]
    if subprocess.run(fetch, stdout=subprocess.DEVNULL, check=False).returncode:  # noqa: S603  # our own program
        raise DemoFailed("without its model the engine cannot run.")


def _wait_for(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    ends_at = time.monotonic() + START_TIMEOUT_S
    while not _answers(port, path):
        if process.poll() is not None:
            raise DemoFailed(f"what should serve port {port} ended at once; its log {log} says:\n{_tail(log)}")
        if time.monotonic() > ends_at:
            raise DemoFailed(f"port {port} is silent after {START_TIMEOUT_S:g} s; the log {log} says:\n{_tail(log)}")
        time.sleep(POLL_S)
    if process.poll() is not None:
        raise DemoFailed(f"another program answers on port {port}; the log {log} says:\n{_tail(log)}")


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def _refuse_taken(port: int, whose: str, variable: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            remedy = f"choose another: make demo {variable}={_free_port()}"
            raise DemoFailed(f"port {port} for {whose} cannot be had ({error.strerror}); {remedy}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _end_running(pid_file: PidFile) -> None:
    pid = pid_file.read()
    if pid is None:
        click.echo("no demo runs")
        return
    os.kill(pid, signal.SIGTERM)
    ends_at = time.monotonic() + 2 * STOP_TIMEOUT_S
    while pid_file.read() == pid:
        if time.monotonic() > ends_at:
            raise DemoFailed(f"process {pid} has not ended within {2 * STOP_TIMEOUT_S:g} s.")
        time.sleep(POLL_S)
    click.echo("ended")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
