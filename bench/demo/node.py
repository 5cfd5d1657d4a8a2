"""One node of the demo: the embedded engine and the appliance before it, on a core of their own.

Owns two processes, their folder and their settings. Must not know: other nodes, what the node is wanted for.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from appliance.commands.profile import VARIABLE
from appliance.config import SETTINGS
from bench.demo import pidfile
from bench.demo.failed import DemoFailed
from bench.knobs import KNOBS, PROJECT

HOST = "127.0.0.1"
MODEL = "smollm2:135m"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
LINES_TOLD = 12
PR_SET_PDEATHSIG = 1  # linux/prctl.h
FILE = "appliance.env"
# What a node has without a profile, from the very table that makes the inventory's group_vars.
DEFAULTS = {name: str(knob.default) for name, knob in KNOBS.items() if name in SETTINGS}


@dataclass
class DemoNode:
    """core: the CPU that both processes keep to, so that two nodes do not slow each other down."""

    name: str
    home: Path
    port: int
    engine_port: int
    core: int
    pepper_file: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """The node as it is without a profile. Its port is what the inventory looks up."""
        self.home.mkdir(mode=0o700)
        (self.home / "port").write_text(f"{self.port}\n")
        (self.home / FILE).write_text("".join(f"{name}={value}\n" for name, value in DEFAULTS.items()))

    @property
    def settings(self) -> dict[str, str]:
        """What its file says."""
        return settings_of(self.home)

    def start(self, stop_waiting: Callable[[], object] = lambda: None) -> None:
        """Both processes, until the node would take a generation. Raises: DemoFailed."""
        self.running = self.settings
        slots = self.running["MAX_CONCURRENT_REQUESTS"]
        engine = ["engine", "--port", str(self.engine_port), "--parallel", slots]
        self._spawn("engine", engine, {})
        self._wait_for("engine", self.engine_port, "/api/version")
        fixed = {
            "HOST": HOST,
            "PORT": str(self.port),
            "OLLAMA_PORT": str(self.engine_port),
            "OLLAMA_MODEL": MODEL,
            "KEY_ISSUANCE": "local",
            "API_KEYS_DB": "api_keys.db",
            "API_KEY_PEPPER_FILE": str(self.pepper_file.resolve()),
            "DRAIN_S": "3",
            "LOG_LEVEL": "info",
        }
        self._spawn("appliance", ["serve", "--config", FILE], fixed)
        self._wait_for("appliance", self.port, "/ready")

    def stop(self) -> None:
        """The appliance first, which lets running answers come to their end."""
        for name in ("appliance", "engine"):
            process = self.processes.pop(name, None)
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def require_alive(self) -> None:
        """Raises: DemoFailed."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise DemoFailed(f"the {name} of {self.name} has ended by itself; its log says:\n{self._tail(name)}")

    def _spawn(self, name: str, arguments: list[str], settings: dict[str, str]) -> None:
        """In a session of its own so that Ctrl-C reaches it through us, in order.

        It ends with us even where we are killed: the kernel then sends it SIGTERM.
        """
        libc = ctypes.CDLL(None)

        def tie() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            os.sched_setaffinity(0, {self.core})

        environment = {key: value for key, value in os.environ.items() if key not in (*SETTINGS, VARIABLE)}
        with (self.home / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "appliance", *arguments],
                cwd=self.home,
                env={**environment, **settings, "PYTHONPATH": str(PROJECT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=tie,
            )
        self.processes[name] = process
        (self.home / f"{name}.pid").write_text(f"{process.pid}\n")

    def _wait_for(self, name: str, port: int, path: str) -> None:
        process, ends_at = self.processes[name], time.monotonic() + START_TIMEOUT_S
        while not _answers(port, path):
            if process.poll() is not None:
                raise DemoFailed(f"the {name} of {self.name} ended at once; its log says:\n{self._tail(name)}")
            if time.monotonic() > ends_at:
                raise DemoFailed(
                    f"the {name} of {self.name}, port {port}, is silent after {START_TIMEOUT_S:g} s; its log says:\n"
                    f"{self._tail(name)}"
                )
            time.sleep(POLL_S)
        if process.poll() is not None:
            raise DemoFailed(f"another program answers on port {port}; the log says:\n{self._tail(name)}")

    def _tail(self, name: str) -> str:
        log = self.home / f"{name}.log"
        return "\n".join([*log.read_text(errors="replace").splitlines()[-LINES_TOLD:], f"({log})"])


def settings_of(home: Path) -> dict[str, str]:
    """What a node's file says; what it does not say is at its default."""
    return DEFAULTS | {name: value or "" for name, value in dotenv_values(home / FILE).items()}


def in_force(port: int, key: str) -> dict[str, str] | None:
    """The settings that the node itself says it has; None where it does not answer."""
    told = _get(port, "/node", key)
    found = (told or {}).get("settings")
    return None if found is None else {name: str(found[name]) for name in DEFAULTS if name in found}


def end_leftovers(home: Path) -> bool:
    """End what still runs of a node whose demo was killed. Whether there was anything."""
    files = [home / f"{name}.pid" for name in ("appliance", "engine")]
    pids = [int(text) for file in files if file.exists() and (text := file.read_text().strip()).isdecimal()]
    ended = [pid for pid in pids if pidfile.end(pid, home, STOP_TIMEOUT_S)]
    return bool(ended)


def _answers(port: int, path: str) -> bool:
    return _get(port, path) is not None


def _get(port: int, path: str, key: str = "") -> dict[str, Any] | None:
    connection = HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path, headers={"X-API-Key": key} if key else {})
        response = connection.getresponse()
        found: dict[str, Any] = json.loads(response.read())
        return found if response.status == 200 else None
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
