#!/usr/bin/python
"""Hands the fleet's keys to the appliance of a node, and tells what that changed."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: keys_sync
short_description: Make the fleet's keys on a node those of the inventory
description:
  - Runs C(pi-llm keys sync) with the document on its standard input, so that nothing secret is in any argument.
  - In check mode it runs C(keys sync --check), which only reads. A node without the appliance would get all keys;
    one whose appliance cannot be run is warned about, since the play may be about to mend it.
options:
  document:
    description: What the filter P(fleet_keys#filter) made, as JSON. Holds digests, no keys.
    type: str
    required: true
  revoke_all:
    description: Whether a document without keys may revoke all of the fleet's keys on the node.
    type: bool
    default: false
  command:
    description: The appliance's command on the node.
    type: path
    default: /usr/local/bin/pi-llm
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - Pi LLM Fleet (@pi-llm-fleet)
"""

EXAMPLES = r"""
- name: Give the node the fleet's keys
  keys_sync:
    document: "{{ keys_fleet | fleet_keys(keys_pepper) | to_json }}"
"""

RETURN = r"""
added:
  description: Keys that work now and did not before, each as C(id) and C(owner).
  type: list
  elements: dict
  returned: success
altered:
  description: Keys of which the owner, the expiry or the digest is another now.
  type: list
  elements: dict
  returned: success
revoked:
  description: Keys that do not work any more.
  type: list
  elements: dict
  returned: success
"""

REFUSED = 3  # the exit status of `keys sync` when it changed nothing, and says why
NOT_RUN = 126  # as a shell says it
SIGNS = {"added": "+", "altered": "~", "revoked": "-"}

Changes = dict[str, list[dict[str, str]]]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "document": {"type": "str", "required": True, "no_log": True},
            "revoke_all": {"type": "bool", "default": False},
            "command": {"type": "path", "default": "/usr/local/bin/pi-llm"},
        },
        supports_check_mode=True,
    )
    changes = synced(module)
    result: dict[str, Any] = {"changed": any(changes.values()), **changes}
    module.exit_json(**result, diff={"prepared": described(changes)})


def synced(module: AnsibleModule) -> Changes:
    """Do it, or in check mode find out what it would do."""
    command, document = module.params["command"], module.params["document"]
    if not os.path.exists(command):
        if module.check_mode:
            return all_of(document)
        module.fail_json(msg=f"The appliance is not on this node ({command} is missing); run site.yml first.")
    options = ["--check"] * module.check_mode + ["--revoke-all"] * module.params["revoke_all"]
    status, stdout, stderr = run([command, "keys", "sync", *options], document)
    sentence = stderr.strip().removeprefix("Error: ") or f"{command} keys sync ended with {status}"
    if status == 0:
        return read(stdout)
    if module.check_mode and status != REFUSED:
        module.warn(f"The keys of this node could not be looked at: {sentence}")
        return all_of(document)
    module.fail_json(msg=sentence)
    raise AssertionError("fail_json ends the module")


def run(argv: list[str], given: str) -> tuple[int, str, str]:
    """Not by the module's own run_command, which forgets what a command said that ended before it read its input."""
    try:
        done = subprocess.run(argv, input=given, capture_output=True, encoding="utf-8", cwd="/", check=False)
    except OSError as error:
        return NOT_RUN, "", f"{argv[0]} cannot be run: {error.strerror}."
    return done.returncode, done.stdout, done.stderr


def read(stdout: str) -> Changes:
    """What `keys sync` printed, as owners and ids."""
    told = json.loads(stdout)
    return {
        "added": named(told["added"], told["owners"]),
        "altered": named(told["changed"], told["owners"]),
        "revoked": named(told["revoked"], told["owners"]),
    }


def all_of(document: str) -> Changes:
    owners = {key["id"]: key["owner"] for key in json.loads(document)["keys"]}
    return {"added": named(list(owners), owners), "altered": [], "revoked": []}


def named(ids: list[str], owners: dict[str, str]) -> list[dict[str, str]]:
    return [{"id": key_id, "owner": owners[key_id]} for key_id in ids]


def described(changes: Changes) -> str:
    """For --diff: a line a key, by owner and id."""
    return "".join(f"{SIGNS[kind]} key {key['id']} of {key['owner']}\n" for kind in SIGNS for key in changes[kind])


if __name__ == "__main__":
    main()
