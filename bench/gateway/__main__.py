"""`python -m bench.gateway`: measures the appliance beside the engine asked directly and the floor, in one run.

    --quick       two small rounds, for a look
    --only NAME   these questions only: ttft, delay, speed, plain, leave, burst, ready, memory (may be repeated)
    --rounds N    rounds of each question
    --json FILE   also write every value

Each round asks every question of every subject before the next begins, in an order that turns. Exit status: 0 when
everything was measured, whatever the verdicts; 1 when something broke.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.fake.handle import running_fake_engine
from bench.gateway.figures import Measure, table
from bench.gateway.measuring import QUEUE, QUICK, SLOTS, Bench, Measures, Sizes, over_the_engine
from bench.gateway.subjects import (
    DidNotStart,
    Subject,
    engine_subject,
    running_appliance,
    running_floor,
)
from bench.gateway.targets import verdicts

QUESTIONS = ("ttft", "delay", "speed", "plain", "leave", "burst", "ready", "memory")
# One after the other, each of all subjects: what is compared lies seconds apart. 4 streams, a Pi's case, twice.
PARTS = {"delay": ("delay 1", "delay 4", "delay 50", "delay 4"), "leave": ("leave stream", "leave prefill")}
NAMES = ("engine", "floor", "appliance")
FORMAT = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description="What the appliance costs.")
    parser.add_argument("--quick", action="store_true", help="two small rounds")
    parser.add_argument("--only", action="append", choices=QUESTIONS, metavar="NAME", help=", ".join(QUESTIONS))
    parser.add_argument("--rounds", type=int, help="default: 5, or 2 with --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    questions = tuple(arguments.only or QUESTIONS)
    begin = time.monotonic()
    try:
        measures = measure(questions, rounds, QUICK if arguments.quick else Sizes())
    except DidNotStart as error:
        print(f"\nbench.gateway: {error}", file=sys.stderr)
        return 1
    report(measures, rounds, time.monotonic() - begin)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(measures, rounds), indent=1) + "\n")
    return 0


def measure(questions: Sequence[str], rounds: int, sizes: Sizes) -> Measures:
    """Ask every question `rounds` times; memory first, while nothing else shares the processes' pages."""
    with running_fake_engine(parallel=2000, text="time") as engine:
        bench = Bench(engine, sizes)
        if "memory" in questions:
            measure_memory(bench, max(1, rounds // 2))
        if "ready" in questions:
            measure_starts(bench, rounds)
        running = [q for q in questions if q not in ("memory", "ready")]
        if running:
            with ExitStack() as stack:
                node = stack.enter_context(running_appliance(engine, SLOTS, QUEUE))
                wide = stack.enter_context(running_appliance(engine, 1000))
                floor = stack.enter_context(running_floor(engine))
                subjects = [engine_subject(engine), floor, node]
                steps = [part for question in running for part in PARTS.get(question, (question,))]
                for number in range(rounds):
                    for at, step in enumerate(steps):
                        progress(f"round {number + 1} of {rounds}: {step}")
                        for subject in turned(subjects, number + at):
                            if step == "burst" and number and not has_limits(subject):
                                continue
                            ask(bench, step, subject, wide if subject is node else subject)
    progress("")
    return bench.measures


def ask(bench: Bench, step: str, subject: Subject, wide: Subject) -> None:
    """One step of one subject; `wide` has slots for any number of streams."""
    steps: dict[str, Callable[[], None]] = {
        "ttft": lambda: bench.ttft(subject),
        "delay 1": lambda: bench.delay(subject, 1),
        "delay 4": lambda: bench.delay(subject, 4),
        "delay 50": lambda: bench.delay(wide, 50),
        "speed": lambda: bench.full_speed(wide),
        "plain": lambda: bench.plain(subject),
        "leave stream": lambda: bench.leave_stream(subject),
        "leave prefill": lambda: bench.leave_prefill(subject),
        "burst": lambda: bench.burst(subject),
    }
    steps[step]()


def has_limits(subject: Subject) -> bool:
    """The engine and the floor answer all of a burst, late: asking them once is enough."""
    return subject.name == "appliance"


def measure_memory(bench: Bench, rounds: int) -> None:
    for number in range(rounds):
        for start in turned([running_floor, lambda engine: running_appliance(engine, 1000)], number):
            progress(f"memory, round {number + 1} of {rounds}")
            with start(bench.engine) as subject:
                bench.memory(subject)


def measure_starts(bench: Bench, rounds: int) -> None:
    bench.engine.turn(prefill_s=0, tokens_per_s=0)
    for number in range(rounds):
        progress(f"start to ready, round {number + 1} of {rounds}")
        for start in turned([running_floor, running_appliance], number):
            with start(bench.engine) as subject:
                bench.measures.ready.add(subject.name, [subject.started_s])


def turned(things: Sequence[Any], number: int) -> list[Any]:
    """The same things, beginning with another one each round."""
    at = number % len(things)
    return [*things[at:], *things[:at]]


def progress(words: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)
    elif words:
        print(words, file=sys.stderr, flush=True)


def report(measures: Measures, rounds: int, seconds: float) -> None:
    print(f"{rounds} rounds in {seconds:.0f} s. Figures are of all rounds together; in brackets the lowest and the")
    print("highest round. Ratios are taken within rounds: their median, lowest and highest.\n")
    print("\n".join(table([m for m in shown(measures) if m.samples], NAMES, "appliance", "floor")))
    for subject, bursts in measures.bursts.items():
        print(f"64 at once, 4 slots, queue of 8, {subject}: {bursts[-1]} ({len(bursts)} rounds)")
    print()
    for verdict in verdicts(measures):
        print(verdict.line())


def shown(measures: Measures) -> list[Measure]:
    """The measures as they are printed: TTFT over the engine's own."""
    return [over_the_engine(m) if m is measures.added_ttft else m for m in measures.all()]


def as_json(measures: Measures, rounds: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "machine": {"platform": platform.platform(), "python": platform.python_version()},
        "rounds": rounds,
        "measures": [{"name": m.name, "unit": m.unit, "samples": m.samples} for m in measures.all() if m.samples],
        "bursts": measures.bursts,
        "verdicts": [vars(verdict) for verdict in verdicts(measures)],
    }


if __name__ == "__main__":
    sys.exit(main())
