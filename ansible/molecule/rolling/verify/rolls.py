"""Rolls of the scenario's fleet: what is asked for, the run itself, and what nodes then run."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.hosts import fleet, release
from tests.hosts.fleet import Node
from tests.hosts.load import Load
from tests.hosts.machine import PROJECT

SCENARIO = "rolling"
FOLDER = fleet.folder_of(SCENARIO)
INVENTORY = FOLDER / "inventory"
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "tests", "bench", "docs")
JOURNAL = "journalctl --unit=pi-llm --output=json --output-fields=MESSAGE"


@dataclass(frozen=True)
class Ran:
    """A playbook's end. status: negative when it was killed."""

    status: int
    output: str

    @property
    def changed(self) -> dict[str, int]:
        """The number of changes by node, out of the recap."""
        recap = [line.split() for line in self.output.rpartition("PLAY RECAP")[2].splitlines()[1:] if line.strip()]
        return {words[0]: int(words[3].removeprefix("changed=")) for words in recap}

    def changed_at(self, task: str) -> list[str]:
        """The nodes where a task, named by a part of its name, said that it changed something."""
        sections = self.output.split("\nTASK [")
        lines = [line for text in sections if task in text.split("]", 1)[0] for line in text.splitlines()]
        return sorted({match[1] for line in lines if (match := re.match(r"changed: \[(\w+)\]", line))})


@contextmanager
def started(playbook: str, *arguments: str, checkout: Path = PROJECT) -> Iterator[subprocess.Popen[str]]:
    """A playbook that runs; with the block's end it is killed, with all its processes, if it still does."""
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(checkout / "ansible.cfg"),
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true",  # else a task's name is printed when it has ended
        "ANSIBLE_FORCE_COLOR": "false",
    }
    command = fleet.playbook(SCENARIO, playbook, *arguments)
    with subprocess.Popen(
        command,
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout)


def run(
    playbook: str,
    *arguments: str,
    checkout: Path = PROJECT,
    at: Mapping[str, Callable[[], None]] | None = None,
) -> Ran:
    """Run a playbook of a checkout. at: what to do when a task begins, by a part of the task's name; once each.

    A task begins when its name is printed, which is just before it does anything. What all runs said is in runs.log
    beside the inventory.
    """
    waiting, output = dict(at or {}), ""
    with started(playbook, *arguments, checkout=checkout) as process:
        for line in lines_of(process):
            output += line
            for name in [name for name in waiting if line.startswith("TASK [") and name in line]:
                waiting.pop(name)()
        status = process.wait()
    with (FOLDER / "runs.log").open("a") as log:
        log.write(f"\n==== {playbook} {' '.join(arguments)}\n{output}")
    assert not waiting, f"{playbook} never came to {', '.join(waiting)}\n{output}"
    return Ran(status, output)


def killed_at(task: str, playbook: str, *arguments: str) -> None:
    """Run a playbook whose controller is killed, with all its processes, when a task begins."""
    seen = []
    with started(playbook, *arguments) as process:
        for line in lines_of(process):
            seen.append(line)
            if line.startswith("TASK [") and task in line:
                return
    raise AssertionError(f"{playbook} never came to {task}\n{''.join(seen)}")


def ask_for(where: str, **variables: Any) -> None:
    """What the inventory says of all nodes (`nodes`) or of one, beside what it said from the start."""
    place = INVENTORY / ("group_vars/nodes" if where == "nodes" else f"host_vars/{where}")
    place.mkdir(exist_ok=True)
    (place / "wanted.yml").write_text(json.dumps(variables))


def checkout(name: str, **added: str) -> Path:
    """A newer checkout of the project: a copy in which files of appliance/ have lines more at their end."""
    copy = FOLDER / "checkouts" / name
    shutil.copytree(PROJECT, copy, ignore=LEFT_OUT)
    for module, lines in added.items():
        with (copy / "appliance" / f"{module.replace('.', '/')}.py").open("a") as file:
            file.write(lines)
    return copy


def release_of(folder: Path) -> str:
    """The name of the appliance's release that a checkout makes."""
    return str(wheelhouse().read_sources(folder).release)


def ollama(built: release.Release) -> dict[str, Any]:
    """What the inventory says to get a release of Ollama."""
    return {"ollama_version": built.version, "ollama_checksums": {platform.machine(): built.sha256}}


@cache
def wheelhouse() -> ModuleType:
    """The module that packs releases."""
    spec = importlib.util.spec_from_file_location("wheelhouse", PROJECT / "ansible/library/wheelhouse.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load() -> Load:
    """Clients with the fleet's key."""
    (key,) = yaml.safe_load((Path(__file__).parents[1] / "vars.yml").read_text())["vault_keys"]
    return Load({node.name: node.address for node in fleet.nodes_of(SCENARIO)}, key["key"])


@dataclass(frozen=True)
class Releases:
    """What the fleet is asked for, one after the other: checkouts of the appliance, and Ollama's archives."""

    second: Path
    third: Path
    failing: Path
    ollama: release.Release
    broken_ollama: release.Release

    @classmethod
    def made(cls) -> Releases:
        return cls(
            checkout("second", health="\n# the second release\n"),
            checkout("third", health="\n# the third release\n"),
            checkout("failing", server="\nraise SystemExit('this release is broken on purpose')\n"),
            release.build(fleet.RELEASES, release.NEXT_VERSION),
            release.build(fleet.RELEASES, "0.34.4-broken", broken=True),
        )


@dataclass(frozen=True)
class Deployment:
    """What a node runs with: releases that links lead to, files' checksums, and the processes that serve."""

    appliance: str
    ollama: str
    files: str
    processes: str


def deployment(node: Node) -> Deployment:
    files = "/etc/pi-llm/appliance.env /etc/systemd/system/{pi-llm.service,ollama.service,ollama.service.d/fleet.conf}"
    told = node.sh(
        f"""
        basename "$(readlink /opt/pi-llm/current)"; basename "$(readlink /opt/ollama/current)"
        echo $(sha256sum {files} | cut -c-16)
        echo $(systemctl show -P MainPID -P ExecMainStartTimestampMonotonic pi-llm ollama)
        """
    )
    return Deployment(*told.splitlines())


def running(node: Node) -> dict[str, str]:
    """What the running processes were started with, as they themselves show it."""
    told = node.sh(
        """
        curl -fsS 127.0.0.1:11434/api/version | sed 's/.*:"//; s/".*//'; echo
        tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID ollama)/environ | sed -n 's/^LLAMA_ARG_CACHE_RAM=//p'
        tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID pi-llm)/cmdline | head -1 | cut -d/ -f5
        sed -n 's/^MAX_QUEUE_SIZE=//p' /run/pi-llm/appliance.env
        """
    )
    return dict(zip(("ollama", "cache_ram_mib", "appliance", "max_queue_size"), told.splitlines(), strict=True))


def outages(node: Node) -> list[tuple[int, int]]:
    """When the node took nothing, by its journal: from each drain to the end of the start that followed."""
    found, began = [], None
    for line in node.sh(JOURNAL).splitlines():
        entry = json.loads(line)
        message, at = str(entry["MESSAGE"]), int(entry["__REALTIME_TIMESTAMP"])
        if "Draining" in message and began is None:
            began = at
        if message.startswith("Started ") and began is not None:
            found.append((began, at))
            began = None
    return found


def require_served(node: Node) -> dict[str, Any]:
    """A real generation of the node, now."""
    answer: dict[str, Any] = json.loads(node.sh("pi-llm probe --json --wait 0"))
    assert answer["completion_tokens"] > 0
    return answer
