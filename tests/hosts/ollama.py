#!/usr/bin/python3 -sPB
"""`bin/ollama` of the release for test hosts: Ollama's command line over the embedded engine.

It runs on the Python that the host has and needs nothing installed there: what it imports lies in the release. It
reads the environment that Ollama reads, and two names more:

    EMBEDDED_REGISTRY        a folder to pull from, instead of the one in the release
    EMBEDDED_REGISTRY_RATE   bytes per second that pulls may have, so that a test can interrupt one
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

OURS = Path(__file__).resolve().parents[1] / "lib/ollama/embedded"
READ = ("OLLAMA_", "LLAMA_ARG_", "EMBEDDED_")


def address(host: str) -> tuple[str, int]:
    """OLLAMA_HOST in all its forms: `host`, `host:port`, `:port`, `http://host:port`."""
    parts = urlsplit(host if "://" in host else f"//{host}")
    return parts.hostname or "127.0.0.1", parts.port or 11434


def make_key(home: Path) -> None:
    """Ollama makes its key at the first start, and does not serve where it cannot."""
    key = home / ".ollama" / "id_ed25519"
    if key.exists():
        return
    key.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    key.touch(mode=0o600)
    key.write_text("stands for a private key\n")
    key.with_suffix(".pub").write_text("stands for a public key\n")


def options(environment: Mapping[str, str], version: str) -> list[str]:
    """What `appliance engine` is to be told; what Ollama and it call alike, it reads itself."""
    host, port = address(environment.get("OLLAMA_HOST", ""))
    store = environment.get("OLLAMA_MODELS") or f"{environment['HOME']}/.ollama/models"
    registry = environment.get("EMBEDDED_REGISTRY") or str(OURS / "registry")
    told = ["--host", host, "--port", str(port), "--store", store, "--registry", registry, "--says-version", version]
    told += ["--parallel", environment.get("OLLAMA_NUM_PARALLEL") or "1"]
    told += ["--num-ctx", environment.get("OLLAMA_CONTEXT_LENGTH") or "4096"]
    told += ["--threads", environment.get("LLAMA_ARG_THREADS") or "1"]
    if rate := environment.get("EMBEDDED_REGISTRY_RATE"):
        told += ["--registry-rate", rate]
    return told


def serve(version: str) -> None:
    received = " ".join(f"{name}:{value}" for name, value in sorted(os.environ.items()) if name.startswith(READ))
    print(f'level=INFO source=routes.go msg="server config" env="map[{received}]"', file=sys.stderr, flush=True)
    if "HOME" not in os.environ:
        sys.exit("Error: $HOME is not defined")
    try:
        make_key(Path(os.environ["HOME"]))
    except OSError as error:
        sys.exit(f"Error: could not create directory {error.filename}: {(error.strerror or '').lower()}")
    if (OURS / "broken").exists():
        sys.exit("Error: llama-server: this release is broken on purpose")
    ctypes.CDLL(str(OURS / "libgomp.so.1"), ctypes.RTLD_GLOBAL)  # llama.cpp wants it, and hosts need not have it
    sys.path[:0] = [str(OURS / name) for name in (f"cp3{sys.version_info.minor}", "packages")]
    from appliance.commands.engine import command

    command(options(os.environ, version), prog_name="ollama")


def tell_version(version: str) -> None:
    """As Ollama does: the server's version, and its own when that is another."""
    connection = HTTPConnection(*address(os.environ.get("OLLAMA_HOST", "")), timeout=5)
    try:
        connection.request("GET", "/api/version")
        running = json.loads(connection.getresponse().read())["version"]
    except (OSError, HTTPException, ValueError):
        running = ""
        print("Warning: could not connect to a running Ollama instance")
    if running:
        print(f"ollama version is {running}")
    if running != version:
        print(f"Warning: client version is {version}")


def main() -> None:
    version = (OURS / "version").read_text()
    match sys.argv[1:]:
        case ["serve" | "start"]:
            serve(version)
        case ["--version" | "-v"]:
            tell_version(version)
        case words:
            sys.exit(f"Error: unknown command {' '.join(words)!r}; a test host's Ollama knows serve and --version")


if __name__ == "__main__":
    main()
