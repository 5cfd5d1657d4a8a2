"""`appliance serve`: checks everything that can be wrong before anything is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from appliance import pepper, server
from appliance.config import ConfigError, load
from appliance.keys import KeyStore, KeyStoreError

EXIT_SETTINGS = 2


@click.command()
@click.option("--config", "profile", type=click.Path(path_type=Path), help="A profile: NAME=VALUE lines.")
@click.option(
    "-w", "--workers", default=1, show_default=True, help="Always 1; more is refused, with the reason."
)
def command(profile: Path | None, workers: int) -> None:
    """Run the HTTP service until SIGTERM.

    Settings come from the environment, then `.env`, then the profile; `appliance config show` prints them. Exit
    status: 0 after a drain, 2 for a wrong setting, 1 for anything else.
    """
    try:
        server.refuse_more_workers(os.environ.get("WEB_CONCURRENCY", "1"), "WEB_CONCURRENCY")
        server.refuse_more_workers(workers, "-w")
        config = load(profile).config
        db = Path(config.api_keys_db)
        secret = pepper.obtain(config.api_key_pepper, config.api_key_pepper_file or None, db)
        KeyStore(db, secret, key_limit=config.key_limit).close()  # a wrong pepper stops the start, here
        application = server.ApplianceServer(config, secret)
    except (ConfigError, KeyStoreError, server.TooManyWorkers) as error:
        click.echo(f"appliance: {error}", err=True)
        sys.exit(EXIT_SETTINGS)
    application.run()
