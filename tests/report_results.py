"""Results as a fleet leaves them, made by hand and by simulation: what a report's tests and a look at it begin with.

python tests/report_results.py FOLDER        writes such results there
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import msgspec
from bench_runs import made, run_of

from bench.inventory.tuned_profile import Measured, Provenance, TunedProfile
from bench.running import runfile, validity
from bench.running.samples import ClosedLoop, Facts, Failure, Mark, Run, Sample, Stage
from bench.statistics.comparison import Verdict
from bench.truth import surfaces
from bench.truth.surfaces import Machine, Noise
from bench.tuning.block import Question
from bench.tuning.outcome import Plan
from bench.tuning.racing import Race
from bench.tuning.space import Settings
from bench.tuning.tune_file import BlockRecord, TuneRun
from bench.tuning.verify_file import VerifyRun

TOKENS = 32
SETTINGS = {"N_CTX": 512, "N_THREADS": 4, "N_BATCH": 512, "MAX_CONCURRENT_REQUESTS": 4}
DIGEST = "357c53fb659c5076de1d65ccb0b397446227b71a42be9d1603d46168015c9e4b"


def node_facts(**more: Any) -> dict[str, Any]:
    """What GET /node answers, as far as a report looks."""
    return {
        "board": {
            "name": "Raspberry Pi 5 Model B Rev 1.1", "memory_mib": 8064, "kernel": "6.12.34+rpt-rpi-2712",
            "firmware": "2026-05-08 1f3d2c7a", "os": "Debian GNU/Linux 13 (trixie)",
        },
        "governor": "performance", "temperature_c": 52.1,
        "throttling": {"bits": "0x0", "now": [], "since_boot": [], "source": "firmware"},
        "throttling_seen": {"looks": 3, "times": {}},
        "engine": {"version": "0.33.0", "num_parallel": 4, "problem": None},
        "model": {"name": "qwen2.5:3b", "digest": DIGEST, "quantization": "Q4_K_M", "size_bytes": 1929912432},
        "bandwidth": {"bytes_per_s": 13.1e9, "threads": 4},
        "settings": dict(SETTINGS),
        **more,
    }  # fmt: skip


def measured_run(
    node: str = "pi1",
    day: int = 1,
    speed: float = 5.3,
    loads: tuple[int, ...] = (1, 2, 4),
    requests: int = 40,
    facts: dict[str, Any] | None = None,
    seed: int = 1,
    **fields: Any,
) -> Run:
    """A run with noise; `speed` is one stream's decode tokens/s. Its marks are what validity finds, and those given."""
    rng = random.Random(f"{node}/{day}/{seed}")
    stages, at = [], 0.0
    for number, clients in enumerate(loads):
        samples, per_stream = [], speed / (1 + 0.62 * (clients - 1))
        begin = at
        lanes = [begin] * clients
        for i in range(requests):
            lane = min(range(clients), key=lanes.__getitem__)
            sample = _sample(rng, lanes[lane], per_stream * rng.gauss(1, 0.015), i, clients)
            samples.append(sample)
            lanes[lane] = sample.ended_s
        at = max(lanes)
        stages.append(Stage(number, ClosedLoop(clients), begin, at, min(lanes), samples=samples))
    told = node_facts() if facts is None else facts
    hot = {**told, "temperature_c": 68.4} if told else told
    given = {
        "id": f"202601{day:02d}T101500Z-run-{rng.randrange(16**6):06x}",
        "node": node,
        "url": f"http://{node}.local:8000",
        "started_at": f"2026-01-{day:02d}T10:15:00+00:00",
        "status": "complete",
        "fingerprint": {"model": "qwen2.5:3b", "appliance": "0.1.0", "release": "0.1.0-1a2b3c4d", "node": told or None},
        "facts": [Facts(0.0, "before", told or None), Facts(at, "after", hot or None)],
        "settings": {},
        **fields,
    }
    extra = given.pop("marks", [])
    run = run_of(*stages, **given)
    run.settings = msgspec.structs.replace(run.settings, max_tokens=TOKENS, loads=tuple(map(ClosedLoop, loads)))
    run.marks = [*validity.marks(run), *extra]
    return run


def _sample(rng: random.Random, at: float, speed: float, number: int, clients: int) -> Sample:
    ttft = (1.9 + 0.8 * (clients - 1)) * rng.lognormvariate(0, 0.12)
    tpot = 1 / max(speed, 0.1)
    counts = {
        "prompt_tokens": 128, "prefill_ms": ttft * 900, "decode_ms": tpot * (TOKENS - 1) * 1000,
        "queue_ms": 0.0 if clients < 4 else rng.expovariate(1 / 40), "completion_tokens": TOKENS,
    }  # fmt: skip
    failure = Failure("event", "engine_stalled", detail="stalled") if rng.random() < 0.004 else None
    sample = made(at, ttft, tpot, TOKENS, number=number, counts=counts, wanted_tokens=128)
    return msgspec.structs.replace(sample, counts=None, failure=failure) if failure else sample


def tuned(node: str = "pi1", surface: str = "board", seed: int = 3, blocks: int | None = None) -> TuneRun:
    """A real race over a simulated machine; after so many `blocks` it is interrupted."""
    rng = random.Random(seed)
    machine = Machine(surfaces.SURFACES[surface](rng), Noise(), rng)
    plan = Plan(surfaces.LIVE_SPACE, surfaces.DEFAULT, budget_s=1200.0, seed=seed)
    race, records = Race(plan), []
    while race.outcome is None and (blocks is None or len(records) < blocks):
        began_s = machine.now_s
        block = machine.block(race.wanted[0])
        race.tell(block)
        fields = (block.settings, block.status, began_s, block.cost_s, block.figures, block.reason)
        names = ("settings", "status", "began_s", "cost_s", "figures", "reason")
        records.append(BlockRecord(**dict(zip(names, fields, strict=True))))
    winner = race.outcome.winner if race.outcome else None
    profile = None
    if winner and winner.figures:
        profile = TunedProfile(
            env=winner.settings.env,
            measured={"decode_tokens_per_s": Measured(median=winner.figures.decode_tokens_per_s, ci95=(5.2, 5.4), n=9)},
            provenance=Provenance(run="t", at="2026-01-05T12:00:00Z", ollama="0.33.0", model_digest=DIGEST),
        )
    return TuneRun(
        id=f"20260105T120000Z-tune-{seed:06x}", session="s", node=node, url=f"http://{node}.local:8000",
        bench_version="0.1.0", started_at="2026-01-05T12:00:00+00:00",
        status="complete" if race.outcome else "interrupted", wall_s=race.cost_s, question=Question(), plan=plan,
        blocks=records, outcome=race.outcome, profile=profile,
    )  # fmt: skip


FASTER = Verdict("faster", 0.081, (0.062, 0.103), 0.0005, 0.01, 12, True)
SLOWER = Verdict("slower", -0.05, (-0.071, -0.03), 0.001, 0.01, 12, True)


def verified(node: str = "pi1", day: int = 6, verdict: Verdict | None = FASTER, **fields: Any) -> VerifyRun:
    return VerifyRun(
        id=f"202601{day:02d}T180000Z-verify-{day:06x}", session="s", node=node, url=f"http://{node}.local:8000",
        bench_version="0.1.0", started_at=f"2026-01-{day:02d}T18:00:00+00:00",
        status="complete" if verdict else "failed", question=Question(), looks=(12, 17, 23), verdict=verdict,
        old=Settings.of(N_CTX=512, N_THREADS=4), new=Settings.of(N_CTX=1024, N_THREADS=3), **fields,
    )  # fmt: skip


UNDERVOLTAGE = Mark("undervoltage", "the board reported: undervoltage", "use the 27 W supply, and its own cable")


def write(folder: Path, *found: Run | TuneRun | VerifyRun) -> None:
    for each in found:
        runfile.save(each, folder)


def fleet(folder: Path) -> None:
    """Four nodes: tuned and faster; steady; starved of power; an x86 machine that says little of itself."""
    race = tuned("pi1", "smooth")
    after = {**SETTINGS, **(race.profile.env if race.profile else {})}
    for day in range(1, 10):
        tuned_facts = node_facts(settings=after) if day > 5 else node_facts()
        write(folder, measured_run("pi1", day, 5.28 if day < 6 else 5.71, facts=tuned_facts))
    write(folder, race, verified(), verified(day=7, verdict=SLOWER, restored=True))
    write(folder, *(measured_run("pi2", day, 5.22) for day in (2, 4, 8)))
    write(folder, tuned("pi2", "board", seed=5, blocks=14))
    low = node_facts(throttling={"bits": "0x50005", "now": ["undervoltage", "throttled"], "since_boot": []})
    write(folder, measured_run("pi3", 3, 5.2), measured_run("pi3", 9, 3.9, facts=low, marks=[UNDERVOLTAGE]))
    write(folder, measured_run("workshop-x86", 9, 11.6, loads=(1, 2, 4, 8, 16), facts={}))
    (folder / "pi2" / "20260109T000000Z-run-ffffff.json").write_text("{}")


if __name__ == "__main__":
    fleet(Path(sys.argv[1]))
