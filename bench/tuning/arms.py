"""Which two settings a verification compares, and what its rounds say. Pure.

A node has only one profile deployed, yet both must be measured in turn, or drift would decide. What a request to
/benchmark carries (N_CTX, N_THREADS, N_BATCH) needs no deployment: the node measures old and new alike, whichever is
its own. What only a restart changes (slots, flash attention, the KV cache's type) is deployed for each block, old and
new in turn, where --restarts allows that; else such a pair is refused and says so. MAX_TOKENS and OLLAMA_KEEP_ALIVE
change no speed and are not compared.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from bench.knobs import KNOBS
from bench.running.client import BenchError
from bench.statistics.comparison import LOOKS, Verdict, compare, looks
from bench.tuning.objective import Figures, Objective, score
from bench.tuning.space import Settings, Value
from bench.tuning.verify_file import Round, VerifyRun

COMPARED = tuple(name for name in KNOBS if name not in ("MAX_TOKENS", "OLLAMA_KEEP_ALIVE"))
LEAST_ROUNDS = 6  # with fewer no p is below 5 %: 2 / 2^n


class NothingToVerify(BenchError):
    """Old and new do not differ in anything that can be measured here."""


def arms(
    node: str, old: Mapping[str, Value], new: Mapping[str, Value], with_restarts: bool
) -> tuple[Settings, Settings]:
    """The settings of either arm: those that are compared at all, so that a block names all that it needs.

    old, new: the env of either profile; what one does not name is at its default.
    Raises: NothingToVerify.
    """
    both = [{name: env.get(name, KNOBS[name].default) for name in COMPARED} for env in (old, new)]
    differing = [name for name in COMPARED if both[0][name] != both[1][name]]
    if not differing:
        raise NothingToVerify(f"{node}: old and new profile have the same settings; there is nothing to compare.")
    restarting = [name for name in differing if KNOBS[name].restart != "nothing"]
    if restarting and not with_restarts:
        raise NothingToVerify(
            f"{node}: {' and '.join(restarting)} differ, which only a restart changes; with --restarts each block is "
            "measured after a deployment."
        )
    named = [name for name in COMPARED if KNOBS[name].restart == "nothing" or restarting]
    first, second = (Settings(tuple((name, env[name]) for name in named)) for env in both)
    return first, second


def is_old_first(run: VerifyRun, number: int) -> bool:
    """An independent toss for each round, the same when a verification is resumed."""
    return random.Random(f"{run.seed}/{number}").randrange(2) == 0


def verdict(run: VerifyRun) -> Verdict | None:
    """What the rounds say until now; None before the first look."""
    rounds = run.counted
    old = [_figure(one.old.figures, run.objective) for one in rounds]
    new = [_figure(one.new.figures, run.objective) for one in rounds]
    return compare(old, new, plan=looks(run.looks))


def looks_of(rounds: int | None) -> tuple[int, ...]:
    """After how many rounds to look: the default plan, or half, three quarters and all of so many rounds."""
    if rounds is None:
        return LOOKS
    return tuple(dict.fromkeys(max(LEAST_ROUNDS, math.ceil(rounds * share)) for share in (0.5, 0.75, 1.0)))


def invalid_reasons(rounds: Sequence[Round]) -> list[str]:
    every = [block.reason for one in rounds for block in (one.old, one.new) if block.reason]
    return list(dict.fromkeys(every))


def _figure(figures: Figures | None, objective: Objective) -> float:
    assert figures is not None
    return math.exp(score(figures, objective))
