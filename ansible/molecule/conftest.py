"""What the tests of scenarios get: hosts, by SSH and HTTP. They run from `molecule verify`, not from `make test`."""

from __future__ import annotations

import os

import pytest

from tests.hosts.fleet import Node, nodes_of


@pytest.fixture(scope="session")
def nodes() -> list[Node]:
    """The hosts of the scenario that runs."""
    return nodes_of(os.environ["MOLECULE_SCENARIO_NAME"])
