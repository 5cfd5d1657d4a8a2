"""The service that runs on this machine, as the commands that steer it see it."""

from __future__ import annotations

import http.client
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from appliance.config import Config
from appliance.sources import ConfigError, load

TIMEOUT_S = 5.0
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where a service that listens everywhere is asked


class NotServing(click.ClickException):
    """Nothing runs with these settings, or what runs does not answer."""


@dataclass(frozen=True)
class RunningService:
    """A running `appliance serve`, found by the pid file of its settings."""

    config: Config
    pid: int

    @classmethod
    def find(cls, profile: Path | None) -> RunningService:
        """Raises: NotServing, click.ClickException when the settings are wrong or the pid file cannot be read."""
        try:
            config = load(profile).config
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
        path = config.pid_path
        try:
            pid = int(path.read_text())
        except FileNotFoundError:
            raise NotServing(
                f"no service runs with these settings: there is no {path.absolute()}; --config names the "
                "profile that it was started with."
            ) from None
        except (OSError, ValueError) as error:
            raise click.ClickException(f"{path} cannot be read: {error}.") from error
        if not is_appliance(pid):
            raise NotServing(f"no service runs with these settings: {path} names process {pid}, which is none.")
        return cls(config, pid)

    def require_answer(self) -> None:
        """Before it is told anything: that the service of this pid file is the one of these settings' port.

        Raises: NotServing when nothing answers there.
        """
        self.active_requests()

    def send(self, signum: signal.Signals) -> None:
        """Raises: click.ClickException when it may not, or the process is gone."""
        try:
            os.kill(self.pid, signum)
        except OSError as error:
            raise click.ClickException(f"process {self.pid} cannot be told: {error.strerror}.") from error

    def active_requests(self) -> int:
        return int(self._get("/health")["active_requests"])

    def reason_not_ready(self) -> str | None:
        return self._get("/ready").get("reason")

    def _get(self, path: str) -> dict[str, Any]:
        connection = connection_to(self.config)
        try:
            connection.request("GET", path)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotServing(f"the service does not answer on port {self.config.port}: {error}.") from error
        else:
            return answer
        finally:
            connection.close()


def connection_to(config: Config, timeout_s: float = TIMEOUT_S) -> http.client.HTTPConnection:
    """A connection to the service of these settings, not yet made."""
    return http.client.HTTPConnection(ANY_ADDRESS.get(config.host, config.host), config.port, timeout=timeout_s)


def is_appliance(pid: int) -> bool:
    """Whether this process is an `appliance serve`: pid files outlive power cuts, and their numbers are given anew."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"serve" in arguments and any(argument.rpartition(b"/")[2] == b"appliance" for argument in arguments)
