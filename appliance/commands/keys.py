"""`appliance keys`: create, list, revoke and rotate API keys; take on the fleet's. A running service follows within a
second.

A new key goes to stdout alone, so that it can be piped; the words about it go to stderr.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from appliance import fleetkeys, pepper
from appliance.commands.profile import profile_option
from appliance.config import Config
from appliance.errors import ApplianceError, InvalidValue
from appliance.key import IssuedKey, Key, check_owner, joined, new_parts
from appliance.keyfile import KeyStoreError
from appliance.keys import NO_LIMIT, KeyNotActive, KeyNotFound, KeyOfFleet, KeyStore
from appliance.sources import ConfigError, load

UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION_DAYS_MAX = 36500
TABLE_HEAD = ("ID", "OWNER", "STATE", "FROM", "CREATED", "LAST USED", "EXPIRES", "ROTATED TO")
REFUSED = 3  # the exit status when a sync is refused, and nothing was changed


def duration(*, shortest_s: int) -> Callable[[str], int]:
    """Return what reads a length of time like 90d, 24h, 30m or 45s as seconds."""

    def seconds_of(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,10})([smhd])", text, re.ASCII)
        seconds = int(match[1]) * UNIT_S[match[2]] if match else -1
        if not shortest_s <= seconds <= DURATION_DAYS_MAX * UNIT_S["d"]:
            raise click.BadParameter(
                f"{text!a} is not allowed; a whole number and s, m, h or d is, as in 90d, 24h, 30m or 45s, "
                f"from {shortest_s}s to {DURATION_DAYS_MAX}d."
            )
        return seconds

    return seconds_of


def owner_name(text: str) -> str:
    try:
        check_owner(text)
    except InvalidValue as error:
        raise click.BadParameter(error.detail) from error
    return text


def with_config(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--config FILE` and, as its first argument, the settings."""

    @profile_option("The profile the service runs with.")
    @wraps(function)
    def configured(profile: Path | None, **arguments: Any) -> None:
        try:
            config = load(profile).config
        except ConfigError as error:
            raise click.UsageError(str(error)) from error
        function(config, **arguments)

    return configured


@click.group()
def command() -> None:
    """Create, list, revoke and rotate API keys; take on the fleet's.

    Run it as the user the service runs as, with the same --config; a running service follows within a second.
    """


@command.command()
@click.option("--owner", required=True, type=owner_name, metavar="NAME", help="Who will use the key.")
@click.option(
    "--expires",
    metavar="90d",
    type=duration(shortest_s=1),
    help="How long it is valid, as in 90d; without it, for good.",
)
@with_config
def create(config: Config, owner: str, expires: int | None) -> None:
    """Make a key and print it, this once."""
    with opened(config) as store:
        issued = store.issue(owner, None if expires is None else time.time() + expires)
    hand_over(issued, f"made in {Path(config.api_keys_db).absolute()}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@with_config
def list_(config: Config, as_json: bool) -> None:
    """Show all keys, without their secrets."""
    with opened(config, must_exist=True) as store:
        keys = store.list()
    now = time.time()
    click.echo(json.dumps([described(key, now) for key in keys], indent=2) if as_json else table(keys, now))


@command.command()
@click.argument("key_id", metavar="ID")
@with_config
def revoke(config: Config, key_id: str) -> None:
    """Make the key with this ID useless, for good.

    One of the fleet's keys comes back when the playbook keys.yml runs next: revoke it in the inventory.
    """
    with opened(config, must_exist=True) as store:
        key = store.revoke(key_id)
    click.echo(f"Key {key_id} is revoked; a running service refuses it within a second.", err=True)
    if key.source == "fleet":
        click.echo(
            "It is one of the fleet's keys: the next `ansible-playbook ansible/keys.yml` brings it back, and revokes "
            "it everywhere once it is gone from vault_keys in the inventory.",
            err=True,
        )
    if key.source == "probe":
        click.echo("It is the probe's own: the next `appliance probe` makes another.", err=True)


@command.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--overlap",
    metavar="24h",
    type=duration(shortest_s=0),
    default="0s",
    show_default=True,
    help="How long the old key still works.",
)
@with_config
def rotate(config: Config, key_id: str, overlap: int) -> None:
    """Make a new key for the owner of this one, print it, and let this one run out.

    A key that expires is followed by one with as long a life.
    """
    with opened(config, must_exist=True) as store:
        issued = store.rotate(key_id, overlap)
    end = f"works until {iso(round(time.time() + overlap))}" if overlap else "is revoked"
    hand_over(issued, f"takes the place of {key_id}, which {end}")


@command.command()
@click.option("--owner", required=True, type=owner_name, metavar="NAME", help="Who will use the key.")
def generate(owner: str) -> None:
    """Print a new key as an entry of vault_keys, for the inventory of a fleet.

    Touches no database and needs no node: the key works nowhere until the playbook keys.yml has run.
    """
    click.echo(f"- owner: {json.dumps(owner, ensure_ascii=False)}\n  key: {joined(*new_parts())}")
    click.echo("Paste this into vault_keys (`ansible-vault edit`), and run ansible/keys.yml.", err=True)


@command.command()
@click.option("--check", is_flag=True, help="Only say what would be done; judges the file, not this node's pepper.")
@click.option("--revoke-all", is_flag=True, help="Let a list without keys revoke all of the fleet's.")
@with_config
def sync(config: Config, check: bool, revoke_all: bool) -> None:
    """Make the fleet's keys here exactly those that standard input lists; keys made on this node stay as they are.

    The playbook keys.yml does this on every node. Reads {"keys": [{"id", "digest", "owner", "expires_at"}],
    "pepper_check"}, prints what was added, changed and revoked. Exit status: 0, 3 when it is refused (nothing was
    changed, standard error says why), 2 for wrong settings, 1 for anything else.
    """
    path = Path(config.api_keys_db)
    try:
        document = fleetkeys.parse(sys.stdin.buffer.read(fleetkeys.DOCUMENT_BYTES_MAX + 1))
        if check:
            changes = fleetkeys.preview(document, path, revoke_all=revoke_all)
        else:
            with opened(config) as store:
                changes = fleetkeys.sync(document, store, revoke_all=revoke_all)
    except fleetkeys.SyncRefused as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(REFUSED) from error
    except KeyStoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(changes.as_dict()))


@contextmanager
def opened(config: Config, *, must_exist: bool = False) -> Iterator[KeyStore]:
    """The key database of the settings; whatever goes wrong ends the command with a sentence and status 1."""
    path = Path(config.api_keys_db)
    if must_exist and not path.exists():
        raise click.ClickException(
            f"There is no key database {path.absolute()} (API_KEYS_DB); give the service's profile with "
            "--config, or make the first key with `appliance keys create --owner NAME`."
        )
    try:
        secret = pepper.obtain(config.api_key_pepper, config.api_key_pepper_file, path)
        # KEY_LIMIT bounds what strangers can fill the node with, not its owner.
        store = KeyStore(path, secret, key_limit=NO_LIMIT)
        try:
            yield store
        finally:
            store.close()
    except (ApplianceError, KeyStoreError, KeyNotFound, KeyNotActive, KeyOfFleet) as error:
        raise click.ClickException(str(error)) from error


def hand_over(issued: IssuedKey, what: str) -> None:
    click.echo(f"Key {issued.id} of {issued.owner} {what}. It is shown only this once:", err=True)
    click.echo(issued.api_key)


def described(key: Key, now: float) -> dict[str, str | None]:
    """One key for a program to read; times in ISO 8601."""
    return {
        "id": key.id,
        "owner": key.owner,
        "state": key.state(now),
        "source": key.source or "node",
        "created_at": iso(key.created_at),
        "last_used_at": iso(key.last_used_at),
        "revoked_at": iso(key.revoked_at),
        "expires_at": iso(key.expires_at),
        "replaced_by": key.replaced_by,
    }


def table(keys: Sequence[Key], now: float) -> str:
    """All keys for a person to read, a line each, in aligned columns."""
    rows = [TABLE_HEAD, *(_row(key, now) for key in keys)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def iso(unix_s: int | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _row(key: Key, now: float) -> tuple[str, ...]:
    times = (iso(at) or "-" for at in (key.created_at, key.last_used_at, key.expires_at))
    return (key.id, key.owner, key.state(now), key.source or "node", *times, key.replaced_by or "-")
