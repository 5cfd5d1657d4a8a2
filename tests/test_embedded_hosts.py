"""A web page reaches the embedded engine neither by a name of its own nor from another origin."""

from __future__ import annotations

import pytest

from appliance.embedded.hosts import is_own_host, is_own_origin

HOST = "127.0.0.1:11434"


@pytest.mark.parametrize(
    "host",
    [
        "",
        HOST,
        "localhost:1",
        "LOCALHOST",
        "[::1]:11434",
        "::1",
        "192.168.1.9",
        "pi.local",
        "a.localhost:80",
        "0.0.0.0",
    ],
)
def test_names_and_addresses_of_this_network_are_answered(host: str) -> None:
    assert is_own_host(host)


@pytest.mark.parametrize("host", ["evil.example.com", "8.8.8.8", "8.8.8.8:11434", "local", "localhost.evil.com"])
def test_others_are_not(host: str) -> None:
    assert not is_own_host(host)


@pytest.mark.parametrize(
    "origin", ["", "http://localhost:3000", "https://127.0.0.1", f"http://{HOST}", "tauri://x", "file://"]
)
def test_local_origins_are_answered(origin: str) -> None:
    assert is_own_origin(origin, HOST)


@pytest.mark.parametrize("origin", ["http://evil.example.com", "http://localhost.evil.com", "null", "ftp://localhost"])
def test_foreign_origins_are_not(origin: str) -> None:
    assert not is_own_origin(origin, HOST)
