"""POST /keys/generate: a key for who may have one, as KEY_ISSUANCE says."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated, Literal

import falcon
import msgspec

from appliance.bodies import read_body
from appliance.errors import IssuanceRefused, TooManyRequests
from appliance.key import check_owner
from appliance.keyring import KeyRing

BURST = 10
REFILL_S = 6.0

# A proxy on the node gives everybody a loopback address; a browser on it lets any web page send from there.
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")
BROWSER_HEADERS = ("Origin", "Sec-Fetch-Site")

_REMEDY = "`appliance keys create --owner NAME` on the node makes a key"

Issuance = Literal["local", "open", "off"]


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /keys/generate."""

    owner: Annotated[str, msgspec.Meta(min_length=1, max_length=100, description="Who will use the key.")]


class KeyAnswer(msgspec.Struct, kw_only=True):
    """The answer: the only time that the key is shown."""

    api_key: Annotated[str, msgspec.Meta(pattern="^pk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}$")]
    owner: str
    created_at: Annotated[int, msgspec.Meta(ge=0, description="Unix seconds.")]


class TokenBucket:
    """Lets `burst` through at once and then one each `refill_s` seconds.

    clock: a monotonic clock in seconds.
    """

    def __init__(self, burst: int, refill_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._refill_s = refill_s
        self._clock = clock
        self._full_at = clock()

    def take(self) -> float:
        """Take one and return 0.0, or take none and return the seconds until there is one."""
        now = self._clock()
        full_at = max(self._full_at, now) + self._refill_s
        excess_s = full_at - now - self._burst * self._refill_s
        if excess_s > 0:
            return excess_s
        self._full_at = full_at
        return 0.0


class IssueKey:
    """Makes keys over HTTP.

    issuance: `local` (the node itself), `open` (everybody), `off` (nobody).
    body_timeout_s: how long a client may take to send its request.
    """

    key_required = False

    def __init__(
        self, keyring: KeyRing, issuance: Issuance, body_timeout_s: float, bucket: TokenBucket | None = None
    ) -> None:
        self._keyring = keyring
        self._issuance = issuance
        self._body_timeout_s = body_timeout_s
        self._bucket = bucket or TokenBucket(BURST, REFILL_S)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        refuse_issuance(self._issuance, req)
        wanted = read_body(req, KeyRequest, self._body_timeout_s)
        check_owner(wanted.owner)
        if (wait_s := self._bucket.take()) > 0:
            raise TooManyRequests(
                f"Keys are made {BURST} at once and then one each {REFILL_S:g} s; try again later.",
                retry_after_s=wait_s,
            )
        issued = self._keyring.issue(wanted.owner)
        resp.set_header("Cache-Control", "no-store")
        resp.media = msgspec.to_builtins(
            KeyAnswer(api_key=issued.api_key, owner=issued.owner, created_at=issued.created_at)
        )


def refuse_issuance(issuance: Issuance, req: falcon.Request) -> None:
    """Return when this client may have a key.

    1. `open`: everybody may. `off`: nobody.
    2. `local`: the peer of the socket is this machine, over loopback,
    3. and no header shows a proxy, behind which anybody could be,
    4. nor a browser, where any web page could be asking.

    Raises: IssuanceRefused.
    """
    if issuance == "open":
        return
    if issuance == "off":
        raise IssuanceRefused(f"KEY_ISSUANCE is off; {_REMEDY}.")
    if not is_loopback(req.env.get("REMOTE_ADDR", "")):
        raise IssuanceRefused(f"Keys are made only for the node itself (KEY_ISSUANCE is local); {_REMEDY}.")
    for name in PROXY_HEADERS + BROWSER_HEADERS:
        if req.get_header(name) is not None:
            sender = "a proxy" if name in PROXY_HEADERS else "a browser"
            raise IssuanceRefused(f"The request came through {sender} ({name}), so it may be anybody's; {_REMEDY}.")


def is_loopback(address: str) -> bool:
    """Whether a socket's peer address is the machine's own: in 127.0.0.0/8, ::1, or ::ffff:127.x."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
