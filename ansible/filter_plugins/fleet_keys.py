"""Turns the inventory's API keys into what a node may know of them: digests, made here on the controller.

`fleet_key_problems` says what is wrong with them, `fleet_keys` makes the document that `appliance keys sync` reads. It
computes as appliance.key does, without needing it. Neither ever shows a key or the pepper.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from ansible.errors import AnsibleFilterError

KEY = re.compile(r"pk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
FIELDS = ("owner", "key", "expires_at")
OWNER_LENGTH_MAX = 100
PEPPER_BYTES_MIN, PEPPER_BYTES_MAX = 16, 4096
MAKE_KEY = "`appliance keys generate --owner NAME` makes an entry"
MAKE_PEPPER = "`openssl rand -hex 32` makes one"


def fleet_key_problems(keys: Any, pepper: Any) -> list[str]:
    """What is wrong with the keys and their pepper, a sentence each; nothing when they are right.

    keys: the variable vault_keys, a list of {owner, key, expires_at}.
    pepper: vault_pepper, or "" when there is none, which is right as long as there are no keys.
    """
    return [*_pepper_problems(keys, pepper), *_key_problems(keys)]


def fleet_keys(keys: Any, pepper: Any) -> dict[str, Any]:
    """The document for the nodes: {"keys": [{"id", "digest", "owner", "expires_at"}], "pepper_check"}.

    Raises: AnsibleFilterError with everything that is wrong.
    """
    if problems := fleet_key_problems(keys, pepper):
        raise AnsibleFilterError(" ".join(problems))
    secret = _stripped(pepper)
    return {
        "keys": [_digested(entry, secret) for entry in keys],
        "pepper_check": hmac.digest(secret, b"pi-llm-fleet: the pepper of these keys", "sha256").hex()
        if secret
        else None,
    }


def _pepper_problems(keys: Any, pepper: Any) -> Iterator[str]:
    if not isinstance(pepper, str):
        yield f"vault_pepper is {_kind(pepper)}; expected a text in quotes: {MAKE_PEPPER}."
    elif not pepper and keys:
        yield (
            "vault_keys has keys and vault_pepper is missing: digests need it, the same on all nodes. "
            f"{MAKE_PEPPER[0].upper()}{MAKE_PEPPER[1:]}; put it into the vault."
        )
    elif pepper and not PEPPER_BYTES_MIN <= len(_stripped(pepper)) <= PEPPER_BYTES_MAX:
        allowed = f"{PEPPER_BYTES_MIN} to {PEPPER_BYTES_MAX}"
        yield f"vault_pepper has {len(_stripped(pepper))} bytes; allowed are {allowed}: {MAKE_PEPPER}."


def _key_problems(keys: Any) -> Iterator[str]:
    if isinstance(keys, str) or not isinstance(keys, Sequence):
        yield f"vault_keys is {_kind(keys)}; expected a list of entries with owner and key."
        return
    first_with: dict[str, int] = {}
    for number, entry in enumerate(keys, 1):
        name = _name(number, entry)
        yield from (f"{name}: {problem}" for problem in _entry_problems(entry))
        match = KEY.fullmatch(str(entry.get("key"))) if isinstance(entry, Mapping) else None
        if match and (first := first_with.setdefault(match[1], number)) != number:
            yield f"{name}: it has the key of entry {first}, or one with the same id; {MAKE_KEY}."


def _entry_problems(entry: Any) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield f"it is {_kind(entry)}; expected owner and key ({MAKE_KEY})."
        return
    for field in entry:
        if field not in FIELDS:
            yield f"no such field {str(field)[:40]!a}; allowed are {', '.join(FIELDS)}."
    if "owner" not in entry:
        yield "owner is missing."
    elif not _is_owner(entry["owner"]):
        yield f"owner must be 1 to {OWNER_LENGTH_MAX} printable characters, not only spaces, in quotes."
    if "key" not in entry:
        yield f"key is missing; {MAKE_KEY}."
    elif not isinstance(entry["key"], str) or not KEY.fullmatch(entry["key"]):
        yield f"key has not the form pk_<12 hex digits>_<43 characters>; {MAKE_KEY}."
    try:
        _expiry(entry.get("expires_at"))
    except (ValueError, OverflowError):
        yield 'expires_at must be a day such as "2027-01-31", its last one, or a time such as "2027-01-31T18:00:00Z".'


def _is_owner(owner: Any) -> bool:
    return isinstance(owner, str) and len(owner) <= OWNER_LENGTH_MAX and owner.isprintable() and bool(owner.strip())


def _digested(entry: Mapping[str, Any], pepper: bytes) -> dict[str, Any]:
    match = KEY.fullmatch(entry["key"])
    assert match is not None, "checked before"
    return {
        "id": match[1],
        "digest": hmac.digest(pepper, match[2].encode("ascii"), "sha256").hex(),
        "owner": str(entry["owner"]),
        "expires_at": _expiry(entry.get("expires_at")),
    }


def _expiry(given: Any) -> int | None:
    """The unix second at which a key ends: of a day the end, UTC; of a time without a zone, UTC.

    Raises: ValueError.
    """
    if given is None:
        return None
    if isinstance(given, date):  # YAML makes dates of what is not in quotes
        given = given.isoformat()
    if not isinstance(given, str) or not given.startswith("2"):  # of a century in which keys are made
        raise ValueError
    at = datetime.fromisoformat(given)
    if DAY.fullmatch(given):
        at += timedelta(days=1)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _stripped(pepper: str) -> bytes:
    """As the appliance reads it: white space around does not count."""
    return pepper.encode("utf-8", "surrogateescape").strip()


def _name(number: int, entry: Any) -> str:
    owner = entry.get("owner") if isinstance(entry, Mapping) else None
    return f"vault_keys, entry {number}" + (f" ({owner!a})" if _is_owner(owner) and not KEY.search(str(owner)) else "")


def _kind(value: Any) -> str:
    """What a wrong value is, without the value."""
    kinds = ((bool, "true or false"), (int, "a number"), (float, "a number"), (str, "a text"), (Mapping, "a mapping"))
    return next((words for kind, words in kinds if isinstance(value, kind)), "nothing" if value is None else "a list")


class FilterModule:
    """Found by Ansible under this name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"fleet_key_problems": fleet_key_problems, "fleet_keys": fleet_keys}
