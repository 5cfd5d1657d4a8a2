"""What the tests of tier 2 share: a fake engine and the service in front of it, started once a module.

A module's `SETTINGS` are its service's, `KNOBS` those its engine starts with.
"""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Node, running_node
from hypothesis import HealthCheck, settings

from bench.fake.handle import FakeHandle, running_fake_engine

LOG_TAIL = 6000

settings.register_profile("pi", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # slowness is no failure
settings.load_profile("pi")


@pytest.fixture(scope="module")
def fake_engine(request: pytest.FixtureRequest) -> Iterator[FakeHandle]:
    with running_fake_engine(**getattr(request.module, "KNOBS", {})) as engine:
        yield engine


@pytest.fixture(scope="module")
def running(
    fake_engine: FakeHandle, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    settings: dict[str, Any] = getattr(request.module, "SETTINGS", {})
    with running_node(tmp_path_factory.mktemp("node"), OLLAMA_PORT=fake_engine.port, **settings) as node:
        yield node


@pytest.fixture
def engine(fake_engine: FakeHandle) -> FakeHandle:
    """The module's fake engine, as new."""
    fake_engine.reset()
    return fake_engine


@pytest.fixture
def hosts_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that test hosts would have here, without a look at this machine."""
    monkeypatch.setattr("tests.hosts.network.subnet", lambda: ipaddress.IPv4Network("10.99.0.0/24"))


@pytest.fixture(autouse=True)
def _signals_reach_children() -> Iterator[None]:
    """A test that leaves SIGTERM blocked would have every process of later tests inherit that, and hang."""
    yield
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    assert not blocked


@pytest.fixture
def node(running: Node, engine: FakeHandle) -> Iterator[Node]:
    """The module's service, idle before the test; after it no slot may have leaked."""
    running.wait_until_ready()
    yield running
    running.close_connections()
    running.wait_until_idle()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Show the service's log with a failure."""
    report = yield
    node = getattr(item, "funcargs", {}).get("node")
    if report.failed and node is not None:
        report.sections.append(("log of the service", node.log[-LOG_TAIL:]))
    return report
