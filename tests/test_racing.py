"""The race: what it asks for, what it makes of the answers, when it ends, and that it can be saved."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest

from bench.statistics.comparison import is_surely_higher
from bench.tuning.objective import Figures, Limits
from bench.tuning.outcome import USUAL_LEAST_BLOCKS, Block, Outcome, Plan, usual_blocks
from bench.tuning.racing import ATTEMPTS, CUT_OFF_LEAST_S, Race
from bench.tuning.space import Axis, Settings, Space

SPACE = Space((Axis("N_CTX", (512, 1024)), Axis("N_THREADS", (2, 3, 4)), Axis("N_BATCH", (64, 128))))
DEFAULT = Settings.of(N_CTX=512, N_THREADS=4, N_BATCH=64)
PLAN = Plan(SPACE, DEFAULT, budget_s=4000)

Answer = Callable[[Settings], Block]


def figures(tokens_per_s: float, ttft_ms: float = 1000.0, memory_mib: float = 2000.0) -> Figures:
    return Figures(tokens_per_s, ttft_ms, 1000 / tokens_per_s, memory_mib)


def node(speed: Callable[[Settings], float], noise: float = 0.005, seed: int = 1) -> Answer:
    rng = random.Random(seed)
    return lambda s: Block(s, "measured", 10.0, figures(speed(s) * (1 + rng.gauss(0, noise))))


def run(plan: Plan, answer: Answer, told: list[Block] | None = None) -> Outcome:
    race = Race(plan)
    while race.outcome is None:
        block = answer(race.wanted[0])
        race.tell(block)
        if told is not None:
            told.append(block)
    return race.outcome


def by_threads(settings: Settings) -> float:
    return {2: 4.0, 3: 6.0, 4: 5.0}[int(settings.env["N_THREADS"])]


def fate(outcome: Outcome, settings: Settings) -> str:
    return next(of.name for of in outcome.fates if of.settings == settings)


def test_it_is_sure_of_a_clear_winner_and_gives_the_defaults_figures_beside_it() -> None:
    outcome = run(PLAN, node(by_threads))
    assert outcome.stopped == "sure"
    assert outcome.winner is not None
    assert outcome.winner.settings.env["N_THREADS"] == 3
    assert outcome.default.figures is not None
    assert outcome.default.name == "worse"
    assert outcome.is_better
    assert outcome.gain == pytest.approx(0.2, abs=0.02)
    assert len(outcome.fates) == outcome.grid == 12


def scores(settings: Settings, told: list[Block]) -> list[float]:
    return [math.log(b.figures.decode_tokens_per_s) for b in told if b.settings == settings and b.figures]


@pytest.mark.parametrize("seed", range(40))
def test_on_a_machine_of_any_noise_better_is_what_the_blocks_of_the_two_show_by_themselves(seed: int) -> None:
    rng, told = random.Random(seed), list[Block]()
    plan = replace(PLAN, budget_s=600, seed=seed)
    outcome = run(plan, lambda s: Block(s, "measured", 10.0, figures(rng.lognormvariate(2.0, 0.5))), told)
    assert outcome.winner is not None
    if outcome.is_better and outcome.default.name == "worse":
        assert outcome.gain is not None
        assert outcome.gain > 0
        assert is_surely_higher(scores(outcome.winner.settings, told), scores(DEFAULT, told))
    if outcome.stopped == "sure" and outcome.default.name == "worse":
        assert outcome.is_better


def test_of_equals_the_larger_context_wins_then_fewer_threads() -> None:
    outcome = run(PLAN, node(lambda s: 5.0))
    assert outcome.winner is not None
    assert (outcome.winner.settings.env["N_CTX"], outcome.winner.settings.env["N_THREADS"]) == (1024, 2)
    assert outcome.is_better


def test_of_equals_with_as_many_threads_less_memory_wins() -> None:
    space = Space((Axis("N_BATCH", (64, 128)),))

    def answer(settings: Settings) -> Block:
        mib = 2500.0 if settings.env["N_BATCH"] == 64 else 2100.0
        return replace(node(lambda s: 5.0)(settings), figures=figures(5.0, memory_mib=mib))

    outcome = run(Plan(space, Settings.of(N_BATCH=64), budget_s=2000), answer)
    assert outcome.winner is not None
    assert outcome.winner.settings == Settings.of(N_BATCH=128)


def test_lack_of_data_is_no_tie() -> None:
    outcomes = [run(replace(PLAN, budget_s=250), node(lambda s: 5.0, noise=0.03, seed=seed)) for seed in range(8)]
    assert {outcome.stopped for outcome in outcomes} == {"budget"}
    close = [of for outcome in outcomes for of in outcome.fates if of.change is not None and abs(of.change) < 0.01]
    assert len(close) > len(outcomes)
    assert "tied" not in {of.name for of in close}


def test_the_budget_is_not_overdrawn() -> None:
    outcome = run(replace(PLAN, budget_s=100), node(by_threads, noise=0.2))
    assert (outcome.stopped, outcome.cost_s, outcome.blocks) == ("budget", 100.0, 10)
    assert run(replace(PLAN, most_blocks=7), node(by_threads)).blocks == 7


def test_without_a_budget_it_has_two_fifths_of_two_passes_and_not_too_few() -> None:
    assert usual_blocks(48) == 38 <= 0.4 * 2 * 48
    assert usual_blocks(4) == USUAL_LEAST_BLOCKS


def test_no_round_is_longer_than_there_is_room_and_the_leader_runs_in_the_last() -> None:
    told, is_new = list[Block](), True
    race, answer = Race(replace(PLAN, most_blocks=22)), node(lambda s: 5.0, noise=0.03)
    while race.outcome is None:
        assert len(race.wanted) <= 22 - len(told)
        if is_new:
            leader, members = race.best_so_far, [*race.wanted]
        is_new = len(race.wanted) == 1
        told.append(answer(race.wanted[0]))
        race.tell(told[-1])
    assert len(told) == 22
    assert leader in members


def test_a_block_may_take_twice_as_long_as_the_fastest_and_the_default_any_time() -> None:
    race = Race(PLAN)
    assert (race.wanted[0], race.most_s) == (DEFAULT, None)
    race.tell(Block(DEFAULT, "measured", 30.0, figures(5.0)))
    assert race.most_s == 60.0
    race.tell(Block(race.wanted[0], "measured", 20.0, figures(7.0)))
    assert race.most_s == 40.0
    race.tell(Block(race.wanted[0], "measured", 0.5, figures(7.0)))
    assert race.most_s == CUT_OFF_LEAST_S
    while race.wanted[0] != DEFAULT:
        race.tell(Block(race.wanted[0], "measured", 0.5, figures(7.0)))
    assert race.most_s is None


def test_what_may_still_be_spent_is_the_lesser_of_time_and_blocks() -> None:
    race = Race(replace(PLAN, budget_s=1000.0, most_blocks=10))
    assert race.left_s == 1000.0
    race.tell(Block(DEFAULT, "measured", 30.0, figures(5.0)))
    assert race.left_s == 9 * 30.0


def test_behind_bad_neighbours_nothing_is_looked_for_while_there_are_better_ones() -> None:
    axes = Axis("N_CTX", (1, 2, 3, 4, 5, 6)), Axis("N_BATCH", (1, 2, 3, 4, 5, 6))
    space, told = Space(axes), list[Block]()
    default = Settings.of(N_CTX=1, N_BATCH=1)

    def answer(settings: Settings) -> Block:
        context, batch = (int(value) for value in settings.env.values())
        if batch > context:
            return Block(settings, "failed", 60.0, reason="took too long")
        return Block(settings, "measured", 30.0, figures(5.0 + 0.2 * context))

    outcome = run(Plan(space, default, most_blocks=20), answer, told)
    assert outcome.winner is not None
    assert outcome.winner.settings.env["N_CTX"] == 6
    assert sum(block.status == "failed" for block in told) <= 3


def test_an_invalid_block_is_asked_for_again_at_the_end_of_its_round() -> None:
    race = Race(PLAN)
    first = race.wanted[0]
    for attempt in range(ATTEMPTS):
        assert first in race.wanted
        assert (race.wanted[-1] == first) == (attempt > 0)
        race.tell(Block(first, "invalid", 10.0, reason="throttled"))
    assert first not in race.wanted


def test_settings_without_a_valid_block_are_named_with_the_reason() -> None:
    bad = Settings.of(N_CTX=1024, N_THREADS=2, N_BATCH=64)
    good = node(by_threads)
    outcome = run(PLAN, lambda s: Block(s, "invalid", 10.0, reason="undervoltage") if s == bad else good(s))
    assert fate(outcome, bad) == "not measured"
    assert next(of.reason for of in outcome.fates if of.settings == bad) == "undervoltage"


def test_a_default_that_could_not_be_measured_at_first_is_wanted_again_until_it_is() -> None:
    told, good = list[Block](), node(by_threads)

    def answer(settings: Settings) -> Block:
        is_early = sum(block.settings == DEFAULT for block in told) < 2 * ATTEMPTS
        if settings == DEFAULT and is_early:
            return Block(settings, "invalid", 10.0, reason="undervoltage")
        return good(settings)

    outcome = run(PLAN, answer, told)
    assert (outcome.default.name, outcome.is_better, outcome.stopped) == ("worse", True, "sure")


def test_a_default_that_can_never_be_measured_is_wanted_until_the_budget_ends() -> None:
    good = node(by_threads)
    plan = replace(PLAN, most_blocks=60)
    outcome = run(plan, lambda s: Block(s, "invalid", 10.0, reason="undervoltage") if s == DEFAULT else good(s))
    assert (outcome.default.name, outcome.is_better, outcome.blocks) == ("not measured", False, 60)


def test_settings_that_the_engine_refuses_are_asked_for_once() -> None:
    told: list[Block] = []
    bad = Settings.of(N_CTX=1024, N_THREADS=4, N_BATCH=128)
    good = node(by_threads)
    outcome = run(PLAN, lambda s: Block(s, "failed", 5.0, reason="out of memory") if s == bad else good(s), told)
    assert sum(block.settings == bad for block in told) == 1
    assert fate(outcome, bad) == "ruled out"


def test_settings_with_too_small_a_context_are_not_measured_but_the_default_is() -> None:
    told: list[Block] = []
    outcome = run(replace(PLAN, limits=Limits(min_ctx=1024)), node(by_threads), told)
    assert {block.settings for block in told if block.settings.env["N_CTX"] == 512} == {DEFAULT}
    assert outcome.default.figures is not None
    assert outcome.default.name == "ruled out"
    assert outcome.is_better


def test_settings_over_the_memory_limit_drop_out_after_one_block() -> None:
    told: list[Block] = []

    def answer(settings: Settings) -> Block:
        mib = 3000.0 if settings.env["N_CTX"] == 1024 else 2000.0
        return Block(settings, "measured", 10.0, figures(by_threads(settings), memory_mib=mib))

    outcome = run(replace(PLAN, limits=Limits(max_memory_mib=2500)), answer, told)
    counts = [sum(block.settings == s for block in told) for s in SPACE.settings if s.env["N_CTX"] == 1024]
    assert max(counts) == 1
    assert outcome.winner is not None
    assert outcome.winner.settings.env["N_CTX"] == 512


def test_the_fastest_does_not_win_when_its_ttft_is_over_the_limit() -> None:
    def answer(settings: Settings) -> Block:
        ttft_ms = 3000.0 if settings.env["N_THREADS"] == 3 else 900.0
        return Block(settings, "measured", 10.0, figures(by_threads(settings), ttft_ms))

    outcome = run(replace(PLAN, limits=Limits(max_ttft_ms=2500)), answer)
    assert outcome.winner is not None
    assert outcome.winner.settings.env["N_THREADS"] == 4


def test_latency_counts_the_first_token_and_throughput_does_not() -> None:
    def answer(settings: Settings) -> Block:
        is_four = settings.env["N_THREADS"] == 4
        return Block(settings, "measured", 10.0, figures(5.0 if is_four else 5.5, 1000.0 if is_four else 9000.0))

    winners = [run(replace(PLAN, objective=one), answer).winner for one in ("throughput", "latency")]
    assert [one and one.settings.env["N_THREADS"] == 4 for one in winners] == [False, True]


def test_no_candidate_is_said() -> None:
    outcome = run(PLAN, lambda s: Block(s, "failed", 5.0, reason="the engine does not start"))
    assert (outcome.stopped, outcome.winner, outcome.is_better) == ("no candidates", None, False)
    assert {of.name for of in outcome.fates} == {"ruled out"}


def test_one_disturbed_block_does_not_throw_out_the_best() -> None:
    best = Settings.of(N_CTX=512, N_THREADS=3, N_BATCH=64)
    calm, told = node(lambda s: by_threads(s) * (1.05 if s == best else 1.0)), list[Block]()

    def answer(settings: Settings) -> Block:
        is_first = settings == best and all(block.settings != best for block in told)
        return replace(calm(settings), figures=figures(4.6)) if is_first else calm(settings)

    outcome = run(PLAN, answer, told)
    assert outcome.winner is not None
    assert outcome.winner.settings == best


def test_a_race_is_resumed_from_its_recorded_blocks() -> None:
    told: list[Block] = []
    whole = run(PLAN, node(by_threads), told)
    document = msgspec.json.encode(told)
    saved = msgspec.json.decode(document, type=list[Block])
    assert Race.resumed(PLAN, saved).outcome == whole
    half = Race.resumed(PLAN, saved[: len(saved) // 2])
    assert half.outcome is None
    assert half.wanted[0] == told[len(saved) // 2].settings
    assert half.best_so_far is not None


def test_what_was_not_asked_for_is_refused() -> None:
    race = Race(replace(PLAN, limits=Limits(min_ctx=1024)))
    other = Settings.of(N_CTX=512, N_THREADS=2, N_BATCH=64)
    with pytest.raises(ValueError, match="not wanted"):
        race.tell(Block(other, "measured", 1.0, figures(5.0)))
    with pytest.raises(ValueError, match="not in the space"):
        Race(replace(PLAN, default=Settings.of(N_CTX=1, N_THREADS=1, N_BATCH=1)))


def test_a_round_restarts_once_for_all_that_share_a_restart() -> None:
    space = Space((*SPACE.axes, Axis("OLLAMA_FLASH_ATTENTION", ("off", "on"), needs_restart=True)))
    default = Settings.of(**DEFAULT.env, OLLAMA_FLASH_ATTENTION="off")
    told: list[Block] = []
    outcome = run(Plan(space, default, budget_s=4000), node(by_threads), told)
    groups = [space.group(block.settings) for block in told]
    restarts = sum(one != next_one for one, next_one in pairwise(groups))
    assert outcome.stopped == "sure"
    assert {("off",), ("on",)} == set(groups)
    assert restarts < len(told) / 4
