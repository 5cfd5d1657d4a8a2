#!/usr/bin/python
"""Tells what runs on a node, and what of it is not as it should be. Reads only."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: node_state
short_description: Tell what runs on a node
description:
  - Reads units, releases, the model, the ports that are listened on and what the appliance says of itself.
  - What is wrong is a sentence in RV(problems). The module itself fails only when it cannot look.
options:
  appliance_host:
    description: The address that the appliance listens on.
    type: str
    required: true
  appliance_port:
    description: The port that the appliance listens on.
    type: int
    required: true
  ollama_port:
    description: The port that Ollama listens on, on loopback.
    type: int
    required: true
  ollama_version:
    description: The version that should run.
    type: str
    required: true
  model_name:
    description: The model that should be there.
    type: str
    required: true
  model_digest:
    description: Its digest, the sha256 of its manifest in hex; empty for any.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
author:
  - Pi LLM Fleet (@pi-llm-fleet)
"""

EXAMPLES = r"""
- name: Look what runs
  node_state:
    appliance_host: 0.0.0.0
    appliance_port: 8000
    ollama_port: 11434
    ollama_version: 0.34.4
    model_name: qwen2.5:3b
"""

RETURN = r"""
units:
  description: State, restarts and whether it starts at boot, by unit.
  returned: always
  type: dict
  sample: {pi-llm: {active: active, restarts: 0, enabled: enabled}}
releases:
  description: The release that `current` names, by service.
  returned: always
  type: dict
  sample: {appliance: 0.1.0-5d41402a, ollama: 0.34.4-96f50a11}
ollama_version:
  description: The version that answers, or none.
  returned: always
  type: str
digest:
  description: The model's digest, or none when it is not there.
  returned: always
  type: str
board:
  description: The board's name as it says itself, or none; the same as in GET /node of the appliance.
  returned: always
  type: str
  sample: Raspberry Pi 5 Model B Rev 1.0
ready:
  description: The body of /ready with its http_status, none when nothing answers.
  returned: always
  type: dict
disk_free_mib:
  description: Free space where the models are.
  returned: always
  type: int
problems:
  description: What is not as it should be, a sentence each.
  returned: always
  type: list
  elements: str
"""

TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 1 << 20
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where one that listens everywhere is asked
LINKS = {"appliance": "/opt/pi-llm/current", "ollama": "/opt/ollama/current"}
UNITS = ("ollama", "pi-llm")
DEVICE_TREE_MODEL = "sys/firmware/devicetree/base/model"
SMBIOS_NAMES = ("sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name")
LISTEN = "0A"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "appliance_host": {"type": "str", "required": True},
            "appliance_port": {"type": "int", "required": True},
            "ollama_port": {"type": "int", "required": True},
            "ollama_version": {"type": "str", "required": True},
            "model_name": {"type": "str", "required": True},
            "model_digest": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    state = observed(module.params)
    module.exit_json(changed=False, problems=problems(state, module.params), **state)


def observed(wanted: dict[str, Any]) -> dict[str, Any]:
    """What there is, as RETURN says; `listeners` too, the addresses that listen by port."""
    version = get("127.0.0.1", wanted["ollama_port"], "/api/version") or {}
    tags = get("127.0.0.1", wanted["ollama_port"], "/api/tags") or {}
    host = ANY_ADDRESS.get(wanted["appliance_host"], wanted["appliance_host"])
    return {
        "units": {name: unit(name) for name in UNITS},
        "releases": {service: release(link) for service, link in LINKS.items()},
        "ollama_version": version.get("version"),
        "digest": digest_of(tags.get("models") or [], wanted["model_name"]),
        "board": board(Path("/")),
        "ready": get(host, wanted["appliance_port"], "/ready"),
        "health": get(host, wanted["appliance_port"], "/health"),
        "listeners": listeners({wanted["ollama_port"], wanted["appliance_port"]}),
        "disk_free_mib": disk_free_mib("/var/lib"),
    }


def problems(state: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What of a state, as `observed` gives it, is not as `wanted` says; a sentence each."""
    found = []
    for name, unit_state in state["units"].items():
        if unit_state["active"] != "active":
            found.append(f"{name}.service is {unit_state['active']} (journalctl -u {name} tells why)")
        if unit_state["enabled"] != "enabled":
            found.append(f"{name}.service does not start at boot, it is {unit_state['enabled']}")
    if state["ollama_version"] is None:
        found.append(f"Ollama does not answer on 127.0.0.1:{wanted['ollama_port']}")
    elif state["ollama_version"] != wanted["ollama_version"]:
        found.append(f"Ollama is {state['ollama_version']}, and {wanted['ollama_version']} is wanted (upgrade.yml)")
    if state["ollama_version"] is not None and state["digest"] is None:
        found.append(f"the model {wanted['model_name']} is not there (model.yml brings it)")
    elif wanted["model_digest"] and state["digest"] not in (None, wanted["model_digest"]):
        found.append(f"the model's digest is {state['digest'][:12]}, and {wanted['model_digest'][:12]} is wanted")
    exposed = [address for address in state["listeners"].get(wanted["ollama_port"], []) if not is_loopback(address)]
    if exposed:
        found.append(f"port {wanted['ollama_port']} of Ollama is open to the network on {', '.join(exposed)}")
    ready = state["ready"]
    if ready is None:
        found.append(f"the appliance does not answer on port {wanted['appliance_port']}")
    elif ready["http_status"] != 200:
        found.append(f"not ready: {ready.get('reason', ready['http_status'])}")
    return found


def unit(name: str) -> dict[str, Any]:
    """What systemd knows of a unit."""
    shown = subprocess.run(
        ["systemctl", "show", f"{name}.service", "--property=ActiveState,NRestarts,UnitFileState"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    ).stdout
    fields = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return {
        "active": fields.get("ActiveState") or "unknown",
        "restarts": int(fields.get("NRestarts") or 0),
        "enabled": fields.get("UnitFileState") or "not installed",
    }


def release(link: str) -> str | None:
    try:
        return Path(os.readlink(link)).name
    except OSError:
        return None


def board(root: Path) -> str | None:
    """The board's name, as the appliance tells it, out of whose answers profiles have theirs."""
    return (
        text(root / DEVICE_TREE_MODEL) or " ".join(filter(None, (text(root / name) for name in SMBIOS_NAMES))) or None
    )


def text(path: Path) -> str:
    try:
        return path.read_bytes().rstrip(b"\n\0").decode(errors="replace")
    except OSError:
        return ""


def get(host: str, port: int, path: str) -> dict[str, Any] | None:
    """The JSON object of an answer with its `http_status`, or None when nobody answers so."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = json.loads(response.read(ANSWER_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return {**body, "http_status": response.status} if isinstance(body, dict) else None


def digest_of(models: list[dict[str, Any]], name: str) -> str | None:
    """The digest of the model with this name, whose default host, namespace and tag may be left out or not."""
    name = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    names = {name, f"{name}:latest"}
    return next((str(model.get("digest", "")) for model in models if model.get("name") in names), None)


def listeners(ports: set[int]) -> dict[int, list[str]]:
    """The addresses that are listened on, of these TCP ports."""
    found: dict[int, list[str]] = {}
    for table, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        if not os.path.exists(table):
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, port = local.rsplit(":", 1)
            if state == LISTEN and int(port, 16) in ports:
                found.setdefault(int(port, 16), []).append(readable(address, family))
    return found


def readable(address: str, family: socket.AddressFamily) -> str:
    """An address of /proc/net/tcp: 32-bit words in hex, each in the machine's byte order, little-endian here."""
    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
    return socket.inet_ntop(family, b"".join(words))


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


def disk_free_mib(path: str) -> int:
    stats = os.statvfs(path)
    return stats.f_bavail * stats.f_frsize // (1 << 20)


if __name__ == "__main__":
    main()
