#!/usr/bin/python
"""Gives a playbook a folder of its own on the controller, in which downloads arrive before they get their names.

The folder is named by the playbook's process id: so that two playbooks at once do not take each other's files away,
and that a later one can tell what a killed one left.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: arrivals
short_description: Make the folder in which a playbook's downloads arrive
description:
  - Makes the folder, and removes those beside it whose playbook does not run any more.
  - To be run on the controller.
options:
  path:
    description: The folder, named by the playbook's process id, as the filter C(of_this_run) gives it.
    type: path
    required: true
  inherit:
    description: Whether what a killed playbook left is taken over and not removed, as files with lasting names can be.
    type: bool
    default: false
attributes:
  check_mode:
    support: none
author:
  - Pi LLM Fleet (@pi-llm-fleet)
"""

EXAMPLES = r"""
- name: Make the folder on the controller in which downloads arrive
  arrivals:
    path: "{{ '~/.cache/pi-llm/fleet/ollama/incoming' | of_this_run }}"
  delegate_to: localhost
  run_once: true
  register: arrivals
"""

RETURN = r"""
path:
  description: The folder.
  returned: success
  type: str
  sample: /home/me/.cache/pi-llm/fleet/ollama/incoming/4711
"""


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def abandoned(folder: Path) -> list[Path]:
    """The folders beside this one of playbooks that do not run any more."""
    others = (path for path in sorted(folder.parent.iterdir()) if path != folder and path.name.isdecimal())
    return [path for path in others if not runs(int(path.name))]


def made(folder: Path, *, inherit: bool) -> bool:
    """Make the folder; returns whether anything changed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    left, is_new = abandoned(folder), not folder.is_dir()
    for path in left:
        with suppress(FileNotFoundError):  # another playbook was faster
            if inherit and not folder.is_dir():
                path.rename(folder)
            else:
                shutil.rmtree(path)
    folder.mkdir(exist_ok=True)
    return is_new or left != []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "inherit": {"type": "bool", "default": False},
        }
    )
    folder = Path(module.params["path"])
    try:
        changed = made(folder, inherit=module.params["inherit"])
    except OSError as error:
        module.fail_json(msg=f"The folder {folder} cannot be made on the controller: {error}.")
    module.exit_json(changed=changed, path=str(folder))


if __name__ == "__main__":
    main()
