"""A drain speaks to what runs, and where it takes too long the node goes on as it was, without a restart."""

from __future__ import annotations

import rolls

from tests.hosts.fleet import Node
from tests.hosts.load import Load

LIMIT = "--limit=rolling3"


def client(node: Node) -> Load:
    """One that asks this node alone."""
    load = rolls.load()
    return Load({node.name: node.address}, load.key, clients=1)


def test_a_drain_that_takes_too_long_leaves_the_node_serving_and_nothing_restarted(nodes: list[Node]) -> None:
    node = nodes[2]
    before = rolls.deployment(node)

    def hang() -> None:
        """From here on no answer ends, and one is under way."""
        node.sh("systemctl kill --signal=STOP ollama")
        while not node.get("/health")[1]["active_requests"]:
            pass

    def go_on() -> None:
        node.sh("systemctl kill --signal=CONT ollama")

    with client(node).running() as load:
        ran = rolls.run(
            "profile.yml",
            LIMIT,
            "--extra-vars=appliance_max_queue_size=30 rollout_drain_wait_s=1",
            at={"Find what the running services": hang, "Read the end of the journal": go_on},
        )
    assert ran.status == 2
    said = " ".join(ran.output.split())
    assert "still busy after 1 s" in said
    assert "What served before was put back, and it serves." in said
    assert rolls.deployment(node) == before
    assert load.failures == []


def test_a_service_is_drained_on_the_port_that_it_has_and_not_on_the_next_one(nodes: list[Node]) -> None:
    ran = rolls.run("profile.yml", LIMIT, "--verbose", "--extra-vars=appliance_port=8001")
    assert ran.status == 0, ran.output
    assert "draining: nothing runs, nothing new is taken" in ran.output
    assert nodes[2].get("/ready", port=8001)[0] == 200
