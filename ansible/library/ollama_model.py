#!/usr/bin/python
"""Pulls or removes a model through Ollama's API on the same machine, within bounds and observably.

The decision list of `make_present`:
1. The model is there, and is the pinned one where one is pinned: nothing to do.
2. Another model of that name is kept under a second name while the pull runs.
3. The pull ends with success, with an error of Ollama's, in silence, or out of time; all but the first fail.
4. What came is not what is pinned: it is deleted unless it was there before, what was there before has its name again,
   and the task fails.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_model
short_description: Pull a model into Ollama, or remove it
description:
  - Speaks to the Ollama of the machine it runs on. A pull that was cut short goes on where it stopped.
  - A pull takes as long as the internet does; run it with C(async), and look into I(progress) meanwhile.
options:
  name:
    description: The model, such as C(qwen2.5:3b).
    type: str
    required: true
  state:
    description: Whether the model is to be there.
    type: str
    default: present
    choices: [present, absent]
  digest:
    description: The sha256 of the manifest that the model must have, in hex; empty takes what is there or comes.
    type: str
    default: ""
  port:
    description: The port of Ollama on 127.0.0.1.
    type: int
    default: 11434
  timeout_s:
    description: Seconds that a pull may take.
    type: int
    default: 7200
  stall_timeout_s:
    description: Seconds that a pull may say nothing. Ollama is silent while it verifies gigabytes on a slow disk.
    type: int
    default: 600
  progress:
    description: A file that says how far the pull is, written anew about every second; empty for none.
    type: path
  remove_others:
    description: Remove every other model.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Pull the model
  ollama_model:
    name: qwen2.5:3b
    progress: /run/pi-llm-fleet/model.json
  async: 7200
  poll: 15

- name: Remove a model
  ollama_model:
    name: qwen2.5:7b
    state: absent
"""

RETURN = r"""
digest:
  description: The sha256 of the model's manifest; empty when it is not there.
  type: str
  returned: success
removed:
  description: The names that were removed.
  type: list
  elements: str
  returned: success
"""

GOES_ON = "Run again: it goes on where it stopped."
KEPT = "pi-llm-fleet/before:latest"
ANSWER_LIMIT = 16 * 1024 * 1024
ANSWER_TIMEOUT_S = 30
PROGRESS_EVERY_S = 1.0


class PullFailed(Exception):
    """The model could not be brought; the sentence says why and what helps."""


class Ollama:
    """The API of the Ollama on this machine. Never goes through a proxy."""

    def __init__(self, port: int) -> None:
        self.port = port

    def open(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise PullFailed(
                f"Ollama does not answer on 127.0.0.1:{self.port} ({error}); see: journalctl -u ollama -n 20"
            ) from error

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """One question and its whole answer; what is no JSON comes as None."""
        connection, response = self.open(method, path, body, ANSWER_TIMEOUT_S)
        try:
            return response.status, json.loads(response.read(ANSWER_LIMIT) or b"null")
        except (OSError, http.client.HTTPException, ValueError):
            return response.status, None
        finally:
            connection.close()

    def models(self) -> dict[str, str]:
        """The digest of every model that is there, by its full name."""
        status, answer = self.call("GET", "/api/tags")
        if status != 200 or not isinstance(answer, dict):
            raise PullFailed(f"Ollama on 127.0.0.1:{self.port} answered {status} when asked for its models.")
        return {full_name(row["name"]): row["digest"].removeprefix("sha256:") for row in answer.get("models") or []}

    def copy(self, source: str, destination: str) -> bool:
        """Give a model a second name. Returns: whether it has it."""
        return self.call("POST", "/api/copy", {"source": source, "destination": destination})[0] == 200

    def delete(self, name: str) -> bool:
        """Remove a model. Returns: whether it was there."""
        status, answer = self.call("DELETE", "/api/delete", {"model": name})
        if status not in (200, 404):
            raise PullFailed(f"Ollama answered {status} when told to remove {name}: {error_in(answer)}")
        return status == 200

    def pull(self, name: str, stall_timeout_s: float) -> Iterator[dict[str, Any]]:
        """What Ollama says while it pulls. Raises: PullFailed, for an error or a silence."""
        connection, response = self.open("POST", "/api/pull", {"model": name, "stream": True}, stall_timeout_s)
        try:
            for line in response:
                yield json.loads(line)
        except TimeoutError as error:
            raise PullFailed(
                f"The pull of {name} said nothing for {stall_timeout_s:g} s and was given up. {GOES_ON}"
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise PullFailed(f"The pull of {name} broke off ({error}). {GOES_ON}") from error
        finally:
            connection.close()


def full_name(name: str) -> str:
    """A model's name as /api/tags has it: without the default host and namespace, with a tag."""
    name = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def error_in(answer: Any) -> str:
    return str(answer.get("error", "")) if isinstance(answer, dict) else ""


def refusal(name: str, error: str) -> PullFailed:
    """Ollama's error as a sentence with its remedy."""
    if "file does not exist" in error or "not found" in error:
        return PullFailed(f"There is no model {name}: is model_name spelled right, with its tag? Ollama said: {error}")
    if "no space left" in error:
        return PullFailed(f"The disk is full while {name} is pulled. Make room and run again. Ollama said: {error}")
    if re.search("dial tcp|lookup |no such host|connection refused|timeout", error):
        return PullFailed(
            f"The node does not reach the registry for {name}. Give it internet, or set model_source to controller or "
            f"node. Ollama said: {error}"
        )
    return PullFailed(f"Ollama could not pull {name}: {error}")


class Progress:
    """A small file that says how far a pull is. Written under another name and renamed, so a reader sees all of it."""

    def __init__(self, path: str | None, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.name, self.clock = Path(path) if path else None, name, clock
        self.layers: dict[str, tuple[int, int]] = {}
        self.written = -PROGRESS_EVERY_S
        self.status = ""

    def note(self, record: dict[str, Any]) -> None:
        status, is_new = str(record.get("status", "")), record.get("status", "") != self.status
        self.status = status
        if "total" in record:
            self.layers[str(record.get("digest", ""))] = (int(record.get("completed", 0)), int(record["total"]))
        if status == "success":
            self.layers = {digest: (total, total) for digest, (_, total) in self.layers.items()}
        if is_new or self.clock() - self.written >= PROGRESS_EVERY_S:
            self.write()

    def write(self) -> None:
        self.written = self.clock()
        if self.path is None:
            return
        completed, total = (sum(layer[column] for layer in self.layers.values()) for column in (0, 1))
        share = (
            {"completed_bytes": completed, "total_bytes": total, "percent": round(100 * completed / total, 1)}
            if total
            else {}
        )
        made = self.path.with_name(self.path.name + ".partial")
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        made.write_text(json.dumps({"model": self.name, "status": self.status, "at": int(time.time()), **share}) + "\n")
        made.rename(self.path)


def follow(ollama: Ollama, wanted: dict[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
    """Pull to the end. Raises: PullFailed when it does not end with success within the bounds."""
    name, deadline = wanted["name"], clock() + wanted["timeout_s"]
    progress = Progress(wanted["progress"], name, clock)
    for record in ollama.pull(name, min(wanted["stall_timeout_s"], wanted["timeout_s"])):
        progress.note(record)
        if "error" in record:
            raise refusal(name, str(record["error"]))
        if record.get("status") == "success":
            return
        if clock() > deadline:
            raise PullFailed(
                f"The pull of {name} was not done within {wanted['timeout_s']} s (model_pull_timeout_s). {GOES_ON}"
            )
    raise PullFailed(f"The pull of {name} ended without success. {GOES_ON}")


def make_present(ollama: Ollama, wanted: dict[str, Any], before: str) -> str:
    """Bring the model, as the decision list above says.

    before: the digest of the model that has this name now; "" when there is none.
    Returns: the digest.
    """
    name, digest = wanted["name"], wanted["digest"]
    is_kept = bool(before) and ollama.copy(name, KEPT)
    try:
        follow(ollama, wanted)
        found = ollama.models().get(full_name(name), "")
        if digest and found != digest:
            if found != before:
                ollama.delete(name)
            if is_kept:
                ollama.copy(KEPT, name)
            raise PullFailed(
                f"{name} came with the digest {found or 'of no model'}, and model_digest pins {digest}. It was not "
                "kept. Either the model was published anew under this name, or the pin has a mistake."
            )
    finally:
        if is_kept:
            ollama.delete(KEPT)
    return found


def apply(ollama: Ollama, wanted: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Make the machine as wanted. Returns: what the task reports."""
    name = wanted["name"]
    there = there_now(ollama, check_mode)
    found = there.get(full_name(name), "")
    if wanted["state"] == "absent":
        gone = [name] if found else []
    else:
        gone = [other for other in there if other != full_name(name)] if wanted["remove_others"] else []
    pulls = wanted["state"] == "present" and (not found or found != (wanted["digest"] or found))
    if check_mode:
        words = [f"would pull {name}"] * pulls + [f"would remove {other}" for other in gone]
        return {"changed": bool(words), "msg": ", ".join(words), "digest": found, "removed": gone}
    if pulls:
        found = make_present(ollama, wanted, found)
    for other in gone:
        ollama.delete(other)
    return {"changed": pulls or bool(gone), "digest": "" if wanted["state"] == "absent" else found, "removed": gone}


def there_now(ollama: Ollama, check_mode: bool) -> dict[str, str]:
    """The models that are there. In check mode there may be no Ollama yet, and then no model either."""
    try:
        return ollama.models()
    except PullFailed:
        if check_mode:
            return {}
        raise


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
            "digest": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 11434},
            "timeout_s": {"type": "int", "default": 7200},
            "stall_timeout_s": {"type": "int", "default": 600},
            "progress": {"type": "path"},
            "remove_others": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = apply(Ollama(module.params["port"]), module.params, module.check_mode)
    except PullFailed as failure:
        module.fail_json(msg=str(failure))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
