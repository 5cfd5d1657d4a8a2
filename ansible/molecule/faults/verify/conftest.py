"""The two hosts by what they are for, and what others have put on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts.fleet import Node

# As the installer of ollama.com leaves it, but that the program is a stand-in.
BY_HAND = """
if id ollama >/dev/null 2>&1; then exit 0; fi
useradd --system --user-group --home-dir /usr/share/ollama --create-home --shell /bin/false ollama
printf '#!/bin/sh\\nexec python3 -m http.server 11434 --bind 127.0.0.1\\n' > /usr/local/bin/ollama
chmod 755 /usr/local/bin/ollama
printf '[Service]\\nExecStart=/usr/local/bin/ollama serve\\nUser=ollama\\n[Install]\\nWantedBy=multi-user.target\\n' \
  > /etc/systemd/system/ollama.service
systemctl enable --now ollama 2>/dev/null
"""


@pytest.fixture(scope="session")
def one(nodes: list[Node]) -> Node:
    """A fresh machine, with a small disk under /opt."""
    return nodes[0]


@pytest.fixture(scope="session")
def other(nodes: list[Node]) -> Node:
    """A machine on which somebody has installed Ollama by hand."""
    nodes[1].sh(BY_HAND)
    return nodes[1]


@contextmanager
def port_taken(node: Node, port: int) -> Iterator[None]:
    """A program of somebody else's listens there."""
    node.sh(f"systemd-run --quiet --unit=stranger python3 -m http.server {port}")
    node.sh(f"timeout 30 bash -c 'until ss -Hltn sport = :{port} | grep -q .; do sleep 0.02; done'")
    try:
        yield
    finally:
        node.sh("systemctl stop stranger")
