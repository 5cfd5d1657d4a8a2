"""A node whose model or engine is replaced while it is tuned: the tune ends there, and mixes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_here import Here
from fake_pi import running_pi

pytestmark = pytest.mark.tier2


def test_a_tune_ends_where_another_model_is_found_on_the_node(tmp_path: Path) -> None:
    with running_pi(digests=(*["aaaa"] * 8, "bbbb")) as pi:
        here = Here(tmp_path / "results")
        here.targets.append(pi.target)
        told = here.tune()["pi2"]
    assert "pi2: the model's digest was aaaa when it was measured, and is bbbb now" in told.problem
    assert told.run is not None
    assert told.run.status == "failed"
    seen = [block.facts.node["model"]["digest"] for block in told.run.blocks if block.facts and block.facts.node]
    assert set(seen) == {"aaaa"}
