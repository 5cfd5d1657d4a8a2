#!/usr/bin/python
"""Writes down what a machine had before the fleet came, and says later what has come since, so that it can go again.

Owns one file. It is written once, whole or not at all, and never changed; who takes things away is the role.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: baseline
short_description: Remember what a machine was like before
description:
  - V(recorded) writes packages, users, groups, enabled units, the CPU governor and the folders of O(files) into a file,
    unless it is there.
  - V(compared) changes nothing. It returns the file, and which packages may go. Without a file, none may.
options:
  path:
    description: The file.
    type: path
    required: true
  state:
    description: What to do.
    type: str
    required: true
    choices: [recorded, compared]
  packages:
    description: With V(compared), the packages that the fleet installed. They may go if they were not there before, and
      so may what they brought and nothing else needs. A package that is needed by one that must stay, stays.
    type: list
    elements: str
    default: []
  files:
    description: Files that the fleet writes into folders of the system. A folder that was made for one goes with it.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author: Pi LLM Fleet
"""

EXAMPLES = r"""
- name: Remember what the machine was like before
  baseline:
    path: /var/lib/pi-llm-fleet/baseline.json
    state: recorded
"""

RETURN = r"""
before:
  description: What the file says; empty when there is none.
  returned: when state is compared
  type: dict
packages:
  description: Packages that may go.
  returned: when state is compared
  type: list
files:
  description: Of O(files), what is to be removed, each as itself or as its folder.
  returned: when state is compared
  type: list
"""

FORMAT = 1
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "DEBIAN_FRONTEND": "noninteractive"}


def run(module: AnsibleModule, *command: str) -> str:
    code, out, err = module.run_command(list(command), environ_update=ENVIRONMENT)
    if code:
        module.fail_json(msg=f"`{' '.join(command[:3])} …` failed: {(err or out).strip()}")
    return str(out)


def installed(module: AnsibleModule) -> list[str]:
    listed = run(module, "dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n")
    return sorted({line.split()[0] for line in listed.splitlines() if line.endswith(" installed")})


def enabled(module: AnsibleModule) -> list[str]:
    """Unit files that are enabled; none where systemd is not at work."""
    code, out, _ = module.run_command(
        ["systemctl", "list-unit-files", "--state=enabled", "--no-legend", "--plain"], environ_update=ENVIRONMENT
    )
    return sorted(line.split()[0] for line in out.splitlines() if line.strip()) if code == 0 else []


def now(module: AnsibleModule, files: list[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "packages": installed(module),
        "users": sorted(user.pw_name for user in pwd.getpwall()),
        "groups": sorted(group.gr_name for group in grp.getgrall()),
        "units": enabled(module),
        "folders": folders(files),
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.exists() else None,
    }


def removable(module: AnsibleModule, ours: list[str], before: list[str]) -> list[str]:
    """Packages of ours that were not there before, with what they brought that nothing else needs.

    1. One of ours that a package from before or a person's own depends on by now stays where it is.
    2. What apt would take away along with the rest goes too, unless it was there before or a person asked for it.
    """
    present = set(installed(module))
    may_go = [package for package in ours if package in present and package not in before]
    people = set(run(module, "apt-mark", "showmanual").split()) - set(may_go)
    stays = people | set(before)
    may_go = [package for package in may_go if not purged(module, [package]) & stays]
    return sorted(purged(module, may_go, "--auto-remove") - stays) if may_go else []


def purged(module: AnsibleModule, packages: list[str], *options: str) -> set[str]:
    """What apt would remove with these. What is merely suggested by something else counts as needed by nothing."""
    suggestions = ("-o", "APT::AutoRemove::SuggestsImportant=0")
    out = run(module, "apt-get", "--simulate", *suggestions, *options, "purge", *packages)
    return set(re.findall(r"^(?:Purg|Remv) ([^ :]+)", out, re.MULTILINE))


def folders(files: list[str]) -> list[str]:
    """The folders of these files that are there."""
    return sorted({str(Path(file).parent) for file in files if Path(file).parent.is_dir()})


def leftover(files: list[str], before: list[str]) -> list[str]:
    """What to remove so that none of these files is left: the file, or its folder when that came with it alone."""
    paths = set()
    for path in (Path(file) for file in files if Path(file).parent.is_dir()):
        alone = {entry.name for entry in path.parent.iterdir()} <= {path.name}
        if alone and str(path.parent) not in before:
            paths.add(str(path.parent))
        elif path.exists():
            paths.add(str(path))
    return sorted(paths)


def record(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, and only then under its name; for root alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(module: AnsibleModule, path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        module.fail_json(
            msg=f"{path} cannot be read ({error}), so it is not known what this machine had before: remove the file "
            "to leave the packages where they are."
        )
        raise
    return content


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "required": True, "choices": ["recorded", "compared"]},
            "packages": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    if module.params["state"] == "compared":
        before = read(module, path)
        packages = removable(module, module.params["packages"], before["packages"]) if before else []
        files = leftover(module.params["files"], before.get("folders", folders(module.params["files"])))
        module.exit_json(changed=False, before=before, packages=packages, files=files)
    if path.exists():
        module.exit_json(changed=False)
    if not module.check_mode:
        record(path, now(module, module.params["files"]))
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
