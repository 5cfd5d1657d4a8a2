"""Renders roles as ansible would: its own templating and variables, the real files, a missing variable is an error.

A test names a role and gets its defaults, its contract (meta/argument_specs.yml) and its templates, rendered with the
role's defaults alone or with those of the real inventory for one node. What a role learns on a node while it runs
(facts, registered results) has no default: RUNTIME holds an example of it.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")  # read when ansible is first imported

from ansible.inventory.manager import InventoryManager  # noqa: E402
from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.plugins.loader import init_plugin_loader  # noqa: E402
from ansible.template import Templar, generate_ansible_template_vars, trust_as_template  # noqa: E402
from ansible.vars.manager import VariableManager  # noqa: E402

ROLES = ROOT / "ansible" / "roles"
INVENTORY = ROOT / "inventory"
# As ansible.builtin.template sets them.
TEMPLATE = {"trim_blocks": True, "lstrip_blocks": False, "newline_sequence": "\n"}
RUNTIME: dict[str, dict[str, Any]] = {
    "": {"ansible_facts": {"architecture": "aarch64", "python_version": "3.13.5", "memtotal_mb": 8064}},
    "ollama": {
        "ollama__found": {
            "machine": "aarch64",
            "has_nvidia": False,
            "has_zstd": True,
            "has_python_apt": True,
            "releases": {},
            "release": "0.34.4-96f50a11",
            "is_whole": False,
            "free_mib": 20000,
            "current": "",
            "lacking": [],
            "has_own_unit": False,
            "foreign_unit": "",
            "foreign_binaries": [],
            "user_home": "",
            "listener": {},
            "is_outdated": True,
        }
    },
}


def names() -> list[str]:
    """Every role of the project."""
    return sorted(path.name for path in ROLES.iterdir() if (path / "tasks").is_dir())


@cache
def _loader() -> DataLoader:
    init_plugin_loader()
    loader = DataLoader()
    loader.set_basedir(str(ROOT / "ansible"))
    return loader


def _load(path: Path) -> dict[str, Any]:
    """A YAML file as ansible reads it, its templates trusted; nothing when there is no such file."""
    if not path.is_file():
        return {}
    return _loader().load_from_file(str(path), cache="none", trusted_as_template=True) or {}


def defaults(role: str) -> dict[str, Any]:
    """What defaults/main.yml of a role says, templates unrendered."""
    return _load(ROLES / role / "defaults" / "main.yml")


def options(role: str, entry: str = "main") -> dict[str, dict[str, Any]]:
    """The contract of a role: each variable with its type, default and description."""
    entries = _load(ROLES / role / "meta" / "argument_specs.yml").get("argument_specs") or {}
    return entries.get(entry, {}).get("options") or {}


def templates(role: str) -> list[str]:
    """The templates of a role, relative to its templates/."""
    folder = ROLES / role / "templates"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def inventory_variables(node: str = "pi1", inventory: Path = INVENTORY) -> dict[str, Any]:
    """What the inventory gives a node: group_vars and host_vars by ansible's own precedence, templates unrendered."""
    source = InventoryManager(loader=_loader(), sources=[str(inventory / "hosts.yml")])
    host = source.get_host(node)
    assert host is not None, f"{inventory}/hosts.yml has no node {node}"
    return VariableManager(loader=_loader(), inventory=source).get_vars(host=host)


def variables(role: str, inventory: Path | None = INVENTORY, node: str = "pi1", **extra: Any) -> dict[str, Any]:
    """What a task of the role sees: example facts < the role's defaults < the inventory < `extra`.

    inventory: its folder; None for the role's defaults alone.
    """
    runtime = {**RUNTIME[""], **RUNTIME.get(role, {}), **_load(ROLES / role / "vars" / "main.yml")}
    given = inventory_variables(node, inventory) if inventory else {}
    return {**runtime, **defaults(role), **given, **_trusted(extra)}


def _trusted(value: Any) -> Any:
    """A test's own texts may be templates, as those of an inventory may."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: _trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_trusted(item) for item in value]
    return value


def render(
    role: str, template: str, inventory: Path | None = INVENTORY, node: str = "pi1", dest: str = "", **extra: Any
) -> str:
    """The text of a role's template for a node, as ansible.builtin.template would write it.

    Raises: ansible.errors.AnsibleUndefinedVariable when the template names a variable that nothing defines.
    """
    source = ROLES / role / "templates" / template
    every = variables(role, inventory, node, **extra)
    every.update(generate_ansible_template_vars(path=template, fullpath=str(source), dest_path=dest or template))
    templar = Templar(loader=_loader()).copy_with_new_env(
        searchpath=[str(ROLES / role / "templates"), str(ROLES / role)], available_variables=every
    )
    return templar.template(trust_as_template(source.read_text()), escape_backslashes=False, overrides=TEMPLATE)


def evaluate(role: str, expression: str, inventory: Path | None = INVENTORY, node: str = "pi1", **extra: Any) -> Any:
    """The value of a Jinja expression among the role's variables, such as "node_base_ram_min_mib" or "a + b"."""
    templar = Templar(loader=_loader(), variables=variables(role, inventory, node, **extra))
    return templar.template(trust_as_template("{{ " + expression + " }}"))
