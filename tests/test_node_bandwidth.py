"""POST /node/bandwidth measures how fast memory is read, alone on the node, and its figure makes a roofline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import falcon
import falcon.testing
import gevent
import pytest
from gevent.event import Event
from harness import Node, post

from appliance import bandwidth_probe, errors
from appliance.admission import Admission
from appliance.bandwidth import MemoryBandwidth
from appliance.bandwidth_probe import Bandwidth, Reading
from appliance.config import Config
from bench import roofline
from bench.fake.handle import FakeHandle
from bench.running.client import RequestFailed, Target

SETTINGS = {"MAX_CONCURRENT_REQUESTS": 2}
FIGURE = Bandwidth(
    bytes_per_s=1e10,
    threads=4,
    readings=[Reading(threads=4, best=1e10, median=9e9, worst=8e9, trials=5)],
    in_cache_bytes_per_s=3e10,
    buffer_mib=64,
    cache_mib=2.0,
)


# --- the probe


def test_memory_is_read_by_one_two_four_and_all_cores() -> None:
    assert [bandwidth_probe.thread_counts(cores) for cores in (1, 2, 3, 4, 6)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 4, 6],
    ]


def test_it_reads_all_of_the_buffer_with_every_number_of_threads() -> None:
    found = bandwidth_probe.measure(2, 4, 2.0, trial_s=0.001)
    assert [reading.threads for reading in found.readings] == [1, 2]
    assert all(0 < each.worst <= each.median <= each.best for each in found.readings)
    assert found.bytes_per_s == max(reading.best for reading in found.readings)
    assert found.in_cache_bytes_per_s > 0
    assert (found.buffer_mib, found.cache_mib) == (4, 2.0)


def test_pages_that_were_never_written_to_are_not_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth_probe, "WANTED", bandwidth_probe.HERE)
    with pytest.raises(AssertionError, match="nowhere"):
        bandwidth_probe.measure(1, 1, None, trial_s=0.001)


def test_a_machine_without_room_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(bandwidth_probe, "mmap", SimpleNamespace(mmap=full))
    with pytest.raises(MemoryError):
        bandwidth_probe.measure(1, 1, None)


def caches(root: Path, *rows: tuple[str, str, str, str]) -> Path:
    for number, (cpu, level, size, shared) in enumerate(rows):
        folder = root / "sys/devices/system/cpu" / cpu / "cache" / f"index{number}"
        folder.mkdir(parents=True)
        for name, content in (("level", level), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(content + "\n")
    return root


def test_the_last_caches_count_once_whoever_shares_them(tmp_path: Path) -> None:
    pi5 = [(f"cpu{cpu}", "2", "512K", f"{cpu}") for cpu in range(4)] + [
        (f"cpu{cpu}", "3", "2048K", "0-3") for cpu in range(4)
    ]
    assert bandwidth_probe.cache_mib(caches(tmp_path / "pi5", *pi5)) == 2.0
    two = [("cpu0", "3", "32M", "0"), ("cpu1", "3", "32M", "1")]
    assert bandwidth_probe.cache_mib(caches(tmp_path / "two", *two)) == 64.0
    assert bandwidth_probe.cache_mib(tmp_path / "none") is None


@pytest.mark.parametrize(("cache_mib", "buffer_mib"), [(None, 64), (2.0, 64), (32.0, 128), (512.0, 256)])
def test_far_more_is_read_than_the_caches_hold_but_not_more_than_the_service_may_have(
    cache_mib: float | None, buffer_mib: int
) -> None:
    assert bandwidth_probe.buffer_mib_for(cache_mib) == buffer_mib


# --- the route


class Asked:
    """The route over an admission of its own, and a probe that the test lets go."""

    def __init__(self, probe: Callable[[], Bandwidth] = lambda: FIGURE) -> None:
        self.admission = Admission(slots=2, queue_limit=4)
        self.bandwidth = MemoryBandwidth(Config(max_queue_wait_s=1), self.admission, probe)
        app = falcon.App(middleware=[self])
        app.add_error_handler(errors.ApplianceError, errors.render)
        app.add_route("/node/bandwidth", self.bandwidth)
        self.client = falcon.testing.TestClient(app)

    def process_resource(self, req: falcon.Request, *_: Any) -> None:
        req.context.key = SimpleNamespace(id="0123456789ab")

    def ask(self, **headers: str) -> falcon.testing.Result:
        return self.client.simulate_post("/node/bandwidth", headers=headers)


def test_the_figure_is_answered_and_remembered() -> None:
    asked = Asked()
    assert asked.bandwidth.measured is None
    answer = asked.ask()
    assert (answer.status_code, answer.json["bytes_per_s"], answer.json["threads"]) == (200, 1e10, 4)
    assert asked.bandwidth.measured == FIGURE


def test_events_tell_the_waiting_and_the_figure() -> None:
    text = Asked().ask(Accept="text/event-stream").text
    assert [line for line in text.splitlines() if line.startswith("event: ")] == ["event: progress", "event: result"]


def test_nobody_generates_meanwhile_and_afterwards_everybody() -> None:
    measuring, go_on = Event(), Event()

    def probe() -> Bandwidth:
        measuring.set()
        go_on.wait()
        return FIGURE

    asked = Asked(probe)
    asking = gevent.spawn(asked.ask)
    measuring.wait()
    assert asked.admission.is_benchmarking
    assert asked.ask().status_code == 503
    ticket = asked.admission.enter("other")
    assert ticket.position == 1
    go_on.set()
    assert asking.get().status_code == 200
    assert (asked.admission.is_benchmarking, ticket.position) == (False, 0)


def test_it_waits_for_who_runs_and_gives_up_in_time() -> None:
    asked = Asked()
    running = asked.admission.enter("other")
    assert asked.ask().status_code == 504
    assert not asked.admission.is_benchmarking
    asked.admission.leave(running)
    assert asked.ask().status_code == 200


def test_a_node_without_memory_for_it_is_not_ready_and_gives_the_slots_back() -> None:
    def probe() -> Bandwidth:
        raise MemoryError

    asked = Asked(probe)
    answer = asked.ask()
    assert (answer.status_code, answer.json["error"]) == (503, "not_ready")
    assert (asked.admission.is_benchmarking, asked.bandwidth.measured) == (False, None)


@pytest.fixture
def target(node: Node) -> Target:
    return Target("pi1", f"http://127.0.0.1:{node.port}", node.key)


@pytest.mark.tier2
def test_a_real_node_measures_when_its_generation_has_ended(node: Node, engine: FakeHandle, target: Target) -> None:
    engine.turn(tokens_per_s=20)
    stream = node.generate(max_tokens=10)
    stream.next("token")
    found = roofline.bandwidth(target)
    assert found.bytes_per_s > 1e8
    assert stream.next("done")
    facts = node.get("/node", X_API_Key=node.key).body
    assert facts["bandwidth"]["bytes_per_s"] == found.bytes_per_s
    assert roofline.ceiling_tokens_per_s(facts) == pytest.approx(found.bytes_per_s / 1929912432)
    assert node.ready().status == 200


@pytest.mark.tier2
def test_a_node_is_asked_only_once_and_one_that_cannot_is_passed_over(
    node: Node, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    roofline.measured_once(target)
    assert node.get("/node", X_API_Key=node.key).body["bandwidth"]["bytes_per_s"] > 1e8
    asked: list[Target] = []
    monkeypatch.setattr(roofline, "bandwidth", asked.append)
    roofline.measured_once(target)
    roofline.measured_once(Target("pi2", "http://127.0.0.1:1", ""))
    assert asked == []


@pytest.mark.tier2
def test_it_needs_a_key(node: Node) -> None:
    assert node.open(post("/node/bandwidth", {}, b"")).status == 401


@pytest.mark.tier2
def test_a_client_that_leaves_gives_the_node_back(node: Node, engine: FakeHandle) -> None:
    engine.turn(fault="hang_first")
    running = node.generate()
    node.wait_until_busy(running=1)
    waiting = node.open(post("/node/bandwidth", {"X-API-Key": node.key, "Accept": "text/event-stream"}, b""))
    waiting.next("progress")
    waiting.leave()
    running.leave()
    node.wait_until_ready()


@pytest.mark.tier2
def test_a_node_that_has_no_such_route_is_named(node: Node, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "PATH", "/node/of/tomorrow")
    with pytest.raises(RequestFailed, match="pi1: /node/of/tomorrow failed"):
        roofline.bandwidth(target)


# --- the roofline


def facts(read: Any = 9e9, size: Any = 1.8e9, family: str | None = "qwen2") -> dict[str, Any]:
    return {"bandwidth": {"bytes_per_s": read}, "model": {"size_bytes": size, "family": family}}


def test_a_decode_that_reads_all_weights_a_token_can_be_no_faster_than_memory() -> None:
    assert roofline.ceiling_tokens_per_s(facts()) == 5.0
    assert roofline.share(4.0, facts()) == 0.8


@pytest.mark.parametrize(
    "unknown",
    [None, {}, {"bandwidth": None, "model": None}, facts(read=None), facts(size=None), facts(family="qwen3moe")],
)
def test_what_is_not_known_makes_no_roofline(unknown: dict[str, Any] | None) -> None:
    assert roofline.ceiling_tokens_per_s(unknown) is None
    assert roofline.share(4.0, unknown) is None


def test_without_a_speed_there_is_no_share() -> None:
    assert roofline.share(None, facts()) is None
