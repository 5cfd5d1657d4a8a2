"""Every curl that the README prints works as printed beside `make demo-up`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_process import running_demo

pytestmark = pytest.mark.tier2

README = (Path(__file__).parent.parent / "README.md").read_text()
CURLS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in re.split(r"\n(?=curl )", block.strip())
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """The folder beside which the demo's nodes serve, and the port of the first."""
    with running_demo(tmp_path_factory.mktemp("clone")) as demo:
        yield demo.clone, demo.port


def test_the_readme_has_curls_of_every_route() -> None:
    for route in ("/health", "/live", "/ready", "/generate", "/benchmark", "/keys/generate"):
        assert any(f"localhost:8000{route}" in curl for curl in CURLS), route


@pytest.mark.parametrize("curl", CURLS, ids=range(len(CURLS)))
def test_a_curl_of_the_readme_works_as_printed(curl: str, demo: tuple[Path, int]) -> None:
    folder, port = demo
    bash = shutil.which("bash")
    assert bash
    command = curl.replace("localhost:8000", f"localhost:{port}")
    done = subprocess.run([bash, "-ec", command], cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    if "-N" in curl.split():
        assert "event: token" in done.stdout
        assert "event: done" in done.stdout
    else:
        assert "error" not in json.loads(done.stdout)
