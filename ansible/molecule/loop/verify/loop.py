"""The loop's own commands on the scenario's fleet, and what nodes and their engines say of the settings they have."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.hosts import fleet
from tests.hosts.fleet import Node
from tests.hosts.machine import PROJECT

SCENARIO = "loop"
FOLDER = fleet.folder_of(SCENARIO)
INVENTORY = FOLDER / "inventory"
RESULTS = FOLDER / "results"
CONFIG = re.compile(r'msg="server config" env="map\[(.*)\]"')
OF_THE_ENGINE = ("OLLAMA_FLASH_ATTENTION", "OLLAMA_KV_CACHE_TYPE")
FLASH_ATTENTION = {"auto": None, "on": "1", "off": "0"}


def bench(command: str, *arguments: str, statuses: tuple[int, ...] = (0,)) -> tuple[int, Any]:
    """A command of bench on the scenario's inventory: its exit status, and what it prints as JSON.

    What all of them said on the way is in bench.log beside the inventory.
    """
    words = [command, "--json", "--inventory", str(INVENTORY), "--results", str(RESULTS), *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    with (FOLDER / "bench.log").open("a") as log:
        log.write(f"\n==== bench {' '.join(words)}: exit {done.returncode}\n{done.stderr}{done.stdout}")
    assert done.returncode in statuses, f"bench {command}: exit {done.returncode}\n{done.stderr}{done.stdout}"
    return done.returncode, json.loads(done.stdout)


def deploy(*arguments: str) -> dict[str, int]:
    """Run profile.yml. Returns: the number of changes by node, out of the recap."""
    recap = fleet.play(SCENARIO, "profile.yml", *arguments).rpartition("PLAY RECAP")[2]
    rows = [line.split() for line in recap.splitlines()[1:] if line.strip()]
    return {words[0]: int(words[3].removeprefix("changed=")) for words in rows if words[0] != "localhost"}


def file_of(node: Node, name: str = "tuned.yml") -> Path:
    return INVENTORY / "host_vars" / node.name / name


def profile(node: Node) -> dict[str, Any]:
    """The node's profile as a play has it."""
    found: dict[str, Any] = yaml.safe_load(file_of(node).read_text())["tuned_profile"]
    return found


def facts(node: Node) -> dict[str, Any]:
    """What the node answers to GET /node."""
    (key,) = yaml.safe_load((Path(__file__).parents[1] / "vars.yml").read_text())["vault_keys"]
    with contextlib.closing(http.client.HTTPConnection(node.address, 8000, timeout=30)) as connection:
        connection.request("GET", "/node", headers={"X-API-Key": key["key"]})
        answer: dict[str, Any] = json.load(connection.getresponse())
    return answer


def restarting(env: dict[str, Any]) -> dict[str, str | None]:
    """What an engine is started with under a profile's env, by its own names."""
    env = {"MAX_CONCURRENT_REQUESTS": 4, "OLLAMA_FLASH_ATTENTION": "auto", "OLLAMA_KV_CACHE_TYPE": "f16", **env}
    return {
        "OLLAMA_NUM_PARALLEL": str(env["MAX_CONCURRENT_REQUESTS"]),
        "OLLAMA_FLASH_ATTENTION": FLASH_ATTENTION[env["OLLAMA_FLASH_ATTENTION"]],
        "OLLAMA_KV_CACHE_TYPE": env["OLLAMA_KV_CACHE_TYPE"],
    }


def engine_starts(node: Node) -> list[dict[str, str | None]]:
    """What the node's engine said at each of its starts that it was started with; of what `restarting` names."""
    said = CONFIG.findall(node.sh("journalctl --unit=ollama --output=cat"))
    configs = [dict(part.split(":", 1) for part in line.split(" ")) for line in said]
    names = ("OLLAMA_NUM_PARALLEL", "OLLAMA_FLASH_ATTENTION", "OLLAMA_KV_CACHE_TYPE")
    return [{name: config.get(name) for name in names} for config in configs]


def loaded_context(node: Node) -> int:
    """The context that the engine holds the model with, by itself."""
    (model,) = json.loads(node.sh("curl -fsS 127.0.0.1:11434/api/ps"))["models"]
    return int(model["context_length"])


def require_in_force(node: Node, env: dict[str, Any]) -> None:
    """The appliance shows these settings, and the engine has them."""
    told = facts(node)
    own = {name: value for name, value in env.items() if name not in OF_THE_ENGINE}
    assert {name: told["settings"].get(name) for name in own} == own
    assert loaded_context(node) == told["model"]["loaded_context"] == env["N_CTX"]
    assert engine_starts(node)[-1] == restarting(env)
