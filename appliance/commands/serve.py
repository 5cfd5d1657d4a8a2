"""`appliance serve`: checks everything that can be wrong before anything is started."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import click

from appliance import one_worker, pepper
from appliance.commands.profile import profile_option
from appliance.commands.running import is_appliance
from appliance.config import Config
from appliance.keyfile import KeyStoreError
from appliance.keys import KeyStore
from appliance.sources import ConfigError, load

EXIT_SETTINGS = 2


@click.command()
@profile_option("A profile: NAME=VALUE lines.")
@click.option("-w", "--workers", default=1, show_default=True, help="Always 1; more is refused, with the reason.")
def command(profile: Path | None, workers: int) -> None:
    """Run the HTTP service until SIGTERM.

    Settings come from the environment, then `.env`, then the profile; `appliance config show` prints them. Exit
    status: 0 after a drain, 2 for a wrong setting, 1 for anything else.
    """
    try:
        one_worker.refuse_more(os.environ.get("WEB_CONCURRENCY", "1"), "WEB_CONCURRENCY")
        one_worker.refuse_more(workers, "-w")
        from appliance import server  # only now: importing gunicorn already reads WEB_CONCURRENCY

        config = load(profile).config
        db = Path(config.api_keys_db)
        secret = pepper.obtain(config.api_key_pepper, config.api_key_pepper_file or None, db)
        KeyStore(db, secret, key_limit=config.key_limit).close()  # a wrong pepper stops the start, here
        application = server.ApplianceServer(config, secret)
    except (ConfigError, KeyStoreError, one_worker.TooManyWorkers) as error:
        click.echo(f"appliance: {error}", err=True)
        sys.exit(EXIT_SETTINGS)
    _refuse_second_service(config.pid_path)
    _refuse_taken_address(config)
    application.run()


def _refuse_second_service(pid_path: Path) -> None:
    """Remove a pid file that a power cut left, which gunicorn might take for a running service.

    Raises: click.ClickException when there is one, and when the file cannot be written, on a full disk say.
    """
    with suppress(OSError, ValueError):
        pid = int(pid_path.read_text())
        if pid != os.getpid() and is_appliance(pid):
            raise click.ClickException(
                f"process {pid} already serves with these settings ({pid_path}); stop it, or choose another PID_FILE."
            )
    try:
        try:
            pid_path.write_text(f"{os.getpid()}\n")
        finally:
            pid_path.unlink(missing_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"PID_FILE: {pid_path} cannot be written: {error.strerror}; choose a place that can."
        ) from error


def _refuse_taken_address(config: Config) -> None:
    """gunicorn would try five times, a second apart, and speak of no setting. Raises: click.ClickException."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on HOST={config.host} PORT={config.port}: {error.strerror}; "
                "stop what listens there, or choose another PORT."
            ) from error
