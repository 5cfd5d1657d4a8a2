#!/usr/bin/python
"""Keeps the unit of an Ollama that was installed by hand aside, and puts it back.

Owns one directory with the unit, its drop-ins and whether it was enabled. Programs, users and models of the other
installation stay where they are.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_adoption
short_description: Keep the unit of a hand-installed Ollama aside, or put it back
description:
  - V(aside) copies the unit and its drop-ins away, then takes the drop-ins out of the way; a unit of one's own can then
    take its place. It changes nothing when C(aside) holds a copy and no drop-in is left.
  - V(back) writes them back and removes the copy. It changes nothing when there is no copy.
  - Neither starts or stops anything.
options:
  state:
    description: What to do.
    type: str
    required: true
    choices: [aside, back]
  unit:
    description: The unit file, as M(ollama_installation) found it.
    type: path
    default: /etc/systemd/system/ollama.service
  aside:
    description: The directory of the copy.
    type: path
    default: /var/lib/pi-llm-fleet/adopted-ollama
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Keep the other Ollama's unit aside
  ollama_adoption:
    state: aside
"""

RETURN = r"""
is_restored:
  description: Whether the other Ollama's unit was put back.
  type: bool
  returned: success
was_enabled:
  description: Whether the unit started with the machine; with V(back) it should again.
  type: bool
  returned: success
"""

ETC = Path("/etc/systemd/system/ollama.service")
DROP_INS = Path("/etc/systemd/system/ollama.service.d")


def drop_ins() -> list[Path]:
    return [path for path in DROP_INS.glob("*") if not path.is_dir()]


def put_aside(unit: Path, aside: Path, was_enabled: bool) -> None:
    """Copy first, under a temporary name, and take away after: cut anywhere, one whole copy is left."""
    made = aside.with_name(aside.name + ".partial")
    shutil.rmtree(made, ignore_errors=True)
    made.parent.mkdir(mode=0o700, exist_ok=True)
    made.mkdir(mode=0o700)
    if unit == ETC:  # a package's unit lies elsewhere: one in /etc hides it, and shows it again when it goes
        shutil.copy2(unit, made / "unit")
    if DROP_INS.is_dir():
        shutil.copytree(DROP_INS, made / "drop-ins")
    (made / "state.json").write_text(json.dumps({"was_enabled": was_enabled}))
    os.sync()
    made.rename(aside)


def put_back(aside: Path) -> None:
    if (aside / "unit").is_file():
        shutil.copy2(aside / "unit", ETC)
    if (aside / "drop-ins").is_dir():
        shutil.copytree(aside / "drop-ins", DROP_INS, dirs_exist_ok=True)
    shutil.rmtree(aside)


def was_enabled(module: AnsibleModule, aside: Path) -> bool:
    try:
        return bool(json.loads((aside / "state.json").read_text())["was_enabled"])
    except (OSError, ValueError, KeyError):
        code, _, _ = module.run_command(["systemctl", "is-enabled", "--quiet", ETC.name])
        return bool(code == 0)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["aside", "back"]},
            "unit": {"type": "path", "default": str(ETC)},
            "aside": {"type": "path", "default": "/var/lib/pi-llm-fleet/adopted-ollama"},
        },
        supports_check_mode=True,
    )
    aside, go_aside = Path(module.params["aside"]), module.params["state"] == "aside"
    is_kept, enabled = aside.is_dir(), was_enabled(module, aside)
    changed = bool(drop_ins()) or not is_kept if go_aside else is_kept
    if changed and not module.check_mode:
        if not go_aside:
            put_back(aside)
        elif not is_kept:
            put_aside(Path(module.params["unit"]), aside, enabled)
        if go_aside:
            for path in drop_ins():
                path.unlink()
    module.exit_json(changed=changed, is_restored=changed and not go_aside, was_enabled=enabled)


if __name__ == "__main__":
    main()
