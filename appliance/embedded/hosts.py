"""Which Host and Origin headers are answered. Pure.

As in Ollama: a web page must not reach an engine that has no keys, neither by a name of its own that resolves to this
machine, nor by a request from another origin.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_own_host(host: str) -> bool:
    """Whether a Host header names this machine, so that no web page reaches a loopback service through its DNS."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or "]:" in host else host
    name = name.strip("[]").lower()
    try:
        address = ip_address(name)
    except ValueError:
        return name in ("", "localhost", socket.gethostname().lower()) or name.endswith(
            (".localhost", ".local", ".internal")
        )
    return address.is_loopback or address.is_private or address.is_unspecified


def is_own_origin(origin: str, host: str) -> bool:
    """Whether a page of this origin may ask: none, this service's own, a local one, or a desktop program's."""
    scheme, _, rest = origin.partition("://")
    if not origin or rest == host:
        return True
    if scheme in ("http", "https"):
        return urlsplit(origin).hostname in ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 (compared only)
    return scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file")
