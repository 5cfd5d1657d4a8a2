"""What a key is: its form, its digest, its states, who may own it. Pure."""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Literal

from appliance.errors import InvalidValue

TOKEN_LENGTH = 59
OWNER_LENGTH_MAX = 100
_TOKEN = re.compile(r"pk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
State = Literal["active", "revoked", "expired"]
Source = Literal["fleet", "probe"]


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the file. Times are unix seconds; `digest` is kept out of every rendering.

    source: None for a key made on this node, `fleet` for one of the inventory's, `probe` for that of `appliance probe`.
    """

    id: str
    owner: str
    created_at: int
    last_used_at: int | None
    revoked_at: int | None
    expires_at: int | None
    replaced_by: str | None
    digest: bytes = field(repr=False)
    source: Source | None = None

    def state(self, now: float) -> State:
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "active"


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. The only place where the whole key is ever seen."""

    api_key: str = field(repr=False)
    id: str
    owner: str
    created_at: int


def parse(token: str) -> tuple[str, str] | None:
    """Return (public id, secret) of a key, or None when it has not the form of one."""
    if len(token) != TOKEN_LENGTH:
        return None
    match = _TOKEN.fullmatch(token)
    return None if match is None else (match[1], match[2])


def new_parts() -> tuple[str, str]:
    """Return the (public id, secret) of a key that nobody has."""
    return secrets.token_hex(6), secrets.token_urlsafe(32)


def joined(key_id: str, secret: str) -> str:
    """The whole key, as its owner sends it."""
    return f"pk_{key_id}_{secret}"


def digest(pepper: bytes, secret: str) -> bytes:
    """HMAC-SHA256. A fast function is right here: the secret is 256 random bits, not a password."""
    return hmac.digest(pepper, secret.encode("ascii"), "sha256")


def pepper_check(pepper: bytes) -> bytes:
    """What a file remembers of its pepper, to know it again."""
    return hmac.digest(pepper, b"pi-llm-fleet: the pepper of these keys", "sha256")


def check_owner(owner: str) -> None:
    """Raise InvalidValue unless `owner` is a name that a table of keys can show."""
    allowed = f"1 to {OWNER_LENGTH_MAX} printable characters, not only spaces"
    if len(owner) > OWNER_LENGTH_MAX:
        raise InvalidValue(f"owner: got {len(owner)} characters; expected {allowed}.", field="owner", allowed=allowed)
    if not owner.isprintable() or not owner.strip():
        raise InvalidValue(f"owner: got {owner!a}; expected {allowed}.", field="owner", allowed=allowed)
