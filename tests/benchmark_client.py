"""Sends POST /benchmark to a node of the tests."""

from __future__ import annotations

import json
from typing import Any

from harness import Exchange, Node, post


def benchmark(node: Node, *, events: bool = False, accept: str | None = None, **fields: Any) -> Exchange:
    """The request, sent; the answer as JSON, or as events if so asked. A short prompt unless another is given."""
    headers = {
        "X-API-Key": node.key,
        "Content-Type": "application/json",
        "Accept": accept or ("text/event-stream" if events else "*/*"),
    }
    body = {"prompt": "Why do apples fall?", "max_tokens": 8, **fields}
    return node.open(post("/benchmark", headers, json.dumps(body).encode()))
