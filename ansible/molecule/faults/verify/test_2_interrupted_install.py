"""A first install that is interrupted again and again, each time at another place, and ends as a node that serves.

Each test is the next run after the fault of the one before: that it comes further is the healing of that one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs import Run, cut, host_vars, serves

from tests.hosts import fleet, podman
from tests.hosts.fleet import Node
from tests.hosts.network import gateway
from tests.hosts.server import Faults, serving

# What dpkg has in its journal when the power goes between unpacking and configuring.
STANZA = r"""awk 'BEGIN {RS = ""} /^Package: hostname\n/' /var/lib/dpkg/status"""
INTERRUPTED = f"{STANZA} | sed 's/ ok installed/ ok unpacked/'"
DOWNLOAD = "v{version}/ollama-linux-{arch}.{format}"


def site(node: Node, *arguments: str) -> Run:
    return Run("site.yml", f"--limit={node.name},localhost", *arguments)


def manifests(node: Node) -> str:
    """The models that a node has, as files."""
    return node.sh("find /var/lib/ollama/models/ -path '*/manifests/*' -type f")


def test_a_dpkg_that_was_interrupted_is_finished(one: Node) -> None:
    one.sh(f"{INTERRUPTED} > /var/lib/dpkg/updates/0000; ! apt-get check 2>/dev/null")
    site(one, "--tags=node_base").succeed()
    assert one.sh("dpkg --audit; apt-get check --quiet=2") == ""


def test_power_is_cut_while_a_package_is_unpacked(one: Node) -> None:
    one.sh("apt-get purge --quiet=2 --yes zstd >/dev/null")
    run = site(one, "--tags=node_base", "-e", json.dumps({"node_base_packages": ["zstd"]}))
    run.reach_on(one, "dpkg-query --show --showformat='${db:Status-Eflag}\\n' | grep -q reinstreq", freeze="dpkg")
    cut(one, run)
    site(one, "--tags=node_base").succeed()
    assert one.sh("dpkg --audit; apt-get check --quiet=2") == ""


def test_a_download_that_comes_damaged(one: Node, tmp_path: Path) -> None:
    with serving(fleet.RELEASES, Faults(corrupt=True), gateway()) as server:
        said = site(one, "-e", f"ollama_url={server.url}/{DOWNLOAD}", "-e", f"ollama_cache_dir={tmp_path}").fail()
    assert "did not come from http://" in said
    assert "Nothing of it was unpacked" in said
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert one.sh("ls -A /opt/ollama 2>/dev/null || true") == ""


def test_a_download_that_ends_too_early(one: Node, tmp_path: Path) -> None:
    with serving(fleet.RELEASES, Faults(stop_after=1 << 20), gateway()) as server:
        urls = ("-e", f"ollama_url={server.url}/{DOWNLOAD}", "-e", f"ollama_cache_dir={tmp_path}")
        said = site(one, "--tags=ollama", *urls).fail()
    assert "did not come from http://" in said
    assert [path.name for path in (tmp_path / "ollama").iterdir()] == ["incoming"]  # the next run empties it


def test_a_checksum_of_another_release(one: Node, tmp_path: Path) -> None:
    wrong = json.dumps({"ollama_checksums": {"x86_64": "ab" * 32, "aarch64": "ab" * 32}})
    said = site(one, "--tags=ollama", "-e", wrong, "-e", f"ollama_cache_dir={tmp_path}").fail()
    assert "did not match" in said
    assert "are ollama_version and ollama_checksums of the same release?" in said


@contextmanager
def room_left(node: Node, mib: int) -> Iterator[None]:
    """So much is free under /opt, and no more."""
    node.sh(f"fallocate --length $(( $(df --output=avail -B1 /opt | tail -1) - {mib} * 1024 * 1024 )) /opt/filler")
    try:
        yield
    finally:
        node.sh("rm /opt/filler")


def test_the_disk_runs_full_while_ollama_is_unpacked(one: Node) -> None:
    with room_left(one, 280):
        assert "No space left on device" in site(one, "--tags=ollama").fail()
    assert one.sh("ls -A /opt/ollama /opt/ollama/releases") == "/opt/ollama:\nreleases\n\n/opt/ollama/releases:"


def test_a_disk_that_is_full_is_seen_before(one: Node) -> None:
    with room_left(one, 100):
        assert "270 are needed (250 to install, 20 in reserve). Free some" in site(one).fail()


def test_power_is_cut_while_ollama_is_unpacked(one: Node, other: Node) -> None:
    """The other node, which was alone for half of the run, is finished, and the Ollama that it had is adopted."""
    (host_vars(other) / "mine.yml").write_text("ollama_adopt: true\n")
    run = Run("site.yml")
    run.reach_on(one, "compgen -G /opt/ollama/releases/.*.partial/lib/ollama", freeze="tar")
    podman.off(one.name)
    said = run.fail()
    assert f"fatal: [{one.name}]: UNREACHABLE!" in said
    assert serves(other)


def test_a_node_that_is_down_from_the_start(one: Node, other: Node) -> None:
    said = Run("verify.yml").fail()
    assert f"fatal: [{one.name}]: UNREACHABLE!" in said
    assert f"{one.name}: not reached" in said or "not reached" in said
    said = Run("profile.yml", "-e", "appliance_max_tokens=64").fail()
    assert f"fatal: [{one.name}]: UNREACHABLE!" in said
    assert other.sh("grep ^MAX_TOKENS= /etc/pi-llm/appliance.env") == "MAX_TOKENS=64"
    podman.on(one.name)


def test_the_controller_dies_while_the_appliance_is_copied(one: Node) -> None:
    run = site(one)
    run.reach("appliance : Copy the release")
    run.kill()
    assert one.sh("ls -A /opt/ollama/releases | wc -l") == "1"


def test_power_is_cut_while_the_appliance_is_installed(one: Node) -> None:
    run = site(one)
    run.reach_on(one, "compgen -G /opt/pi-llm/releases/*/venv/lib/*/site-packages/gunicorn", freeze="python")
    cut(one, run)
    assert one.sh("compgen -G '/opt/pi-llm/releases/*/RELEASE.json' || true") == ""  # what is there is no release yet


def test_power_is_cut_while_the_model_is_pulled(one: Node) -> None:
    slow = '{"model_source": "registry", "ollama_environment": {"EMBEDDED_REGISTRY_RATE": "4000000"}}'
    run = site(one, "-e", slow)
    run.reach_on(one, "compgen -G /var/lib/ollama/models/blobs/*-partial")
    podman.cut(one.name)
    # As it is back before Ansible asks for the pull, or not.
    assert re.search("UNREACHABLE!|it was restarted while it pulled smollm2:135m. Run again", run.end())
    assert manifests(one) == ""


def test_a_model_whose_name_has_a_typo(one: Node) -> None:
    said = site(one, "--tags=ollama,model", "-e", "model_name=smollm2:135n", "-e", "model_source=registry").fail()
    assert "There is no model smollm2:135n: is model_name spelled right" in said


def test_a_model_that_is_not_the_pinned_one(one: Node) -> None:
    wrong = ("-e", f"model_digest={'ab' * 32}", "-e", "model_source=registry")
    said = site(one, "--tags=model", *wrong).fail()
    assert f"and model_digest pins {'ab' * 32}" in said
    assert manifests(one) == ""


def test_power_is_cut_while_the_model_is_copied(one: Node, other: Node) -> None:
    one.sh("rm -rf /var/lib/ollama/models/blobs")
    run = site(one, "--tags=model", "-e", f"model_source_node={other.name}")
    run.reach_on(one, "find /home/pi/.ansible/pi-llm-fleet -size +1M | grep -q .", freeze="sftp-server")
    cut(one, run)
    assert manifests(one) == ""


def test_the_controller_dies_between_settings_and_the_first_start(one: Node) -> None:
    run = site(one)
    run.reach("rollout : Find what the running services do not have yet")
    run.kill()
    assert one.sh("systemctl is-active pi-llm || true") == "inactive"


def test_after_all_that_it_serves(one: Node) -> None:
    site(one).succeed()
    assert serves(one)
    left = "compgen -G '/opt/*/releases/.*partial*' || ls -d /opt/ollama/incoming /home/pi/.ansible/pi-llm-fleet"
    assert one.sh(f"({left} || true) 2>/dev/null") == ""
