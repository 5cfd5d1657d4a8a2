"""RequireApiKey: no request reaches a resource without a valid key, unless the resource needs none."""

from __future__ import annotations

from typing import Any

import falcon

from appliance.errors import Unauthenticated
from appliance.keyring import KeyRing


class RequireApiKey:
    """Falcon middleware: the key of X-API-Key or Authorization: Bearer, judged and put at `req.context.key`.

    A resource that anybody may ask has the class attribute `key_required = False`; one that says nothing
    needs a key.
    """

    def __init__(self, keyring: KeyRing) -> None:
        self._keyring = keyring

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: dict[str, Any]
    ) -> None:
        if getattr(resource, "key_required", True):
            req.context.key = self._keyring.verify(presented(req))


def presented(req: falcon.Request) -> str:
    """Return the key of a request, as sent.

    Raises: Unauthenticated when there is none, or two that differ.
    """
    named = (req.get_header("X-API-Key") or "").strip()
    scheme, _, bearer = (req.get_header("Authorization") or "").partition(" ")
    bearer = bearer.strip() if scheme.lower() == "bearer" else ""
    if named and bearer and named != bearer:
        raise Unauthenticated(
            "X-API-Key and Authorization: Bearer hold different keys; send one of them.", reason="malformed"
        )
    if not (named or bearer):
        raise Unauthenticated(
            "The API key is missing; send it as X-API-Key or as Authorization: Bearer.", reason="missing"
        )
    return named or bearer
