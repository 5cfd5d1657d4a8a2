"""What speaks against a run: each check looks at one cause and says the reason and the remedy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

from bench.running import board_validity
from bench.running.samples import ClosedLoop, Facts, Mark, Run, Sample

LATE_LEAST_MS, LATE_SHARE = 20.0, 0.10
BUSY_SHARE = 0.90
LOAD_LIMIT_MS = 1000.0  # what Ollama calls loading takes less where the model is in memory
CACHED_SLACK_TOKENS = 8
LOOK_S = 2.0  # a look under load counts what was sent after it began, too
EARLY_SHARE, LENGTH_SHARE = 0.10, 0.10
UNFINISHED = Mark(
    "unfinished", "it goes on, or was killed, so nothing has judged it", "wait for its end, or `bench run --resume`"
)
GENERATIONS, LOADS = "appliance_generations_total", "appliance_model_loads_total"


def marks(run: Run) -> list[Mark]:
    """Everything that speaks against this run, each cause once; empty for a clean one."""
    found: dict[str, Mark] = {}
    for check in CHECKS:
        for mark in check(run):
            found.setdefault(mark.code, mark)
    return list(found.values())


def late_client(run: Run) -> Iterator[Mark]:
    """1. The heartbeat's p99 may be LATE_LEAST_MS, or LATE_SHARE of the median TTFT. 2. A core that is nearly full of
    measuring has no time left to be on time."""
    if run.client is None:
        return
    ttfts_ms = [sample.ttft_s * 1000 for sample in _measured(run) if sample.ttft_s is not None]
    allowed_ms = max(LATE_LEAST_MS, LATE_SHARE * median(ttfts_ms) if ttfts_ms else 0.0)
    remedy = "measure fewer nodes at once, or from a machine that does nothing else"
    if run.client.lag_p99_ms > allowed_ms:
        reason = f"bench itself was late by {run.client.lag_p99_ms:.3g} ms (p99; {allowed_ms:.3g} ms are allowed)"
        yield Mark("client_late", reason, remedy)
    if run.client.cpu_share > BUSY_SHARE:
        yield Mark("client_busy", f"bench itself used {run.client.cpu_share:.0%} of its core", remedy)


def other_requests(run: Run) -> Iterator[Mark]:
    """The node's count of generations between two looks, against ours in that time; cut off ones may count or not."""
    for before, after in _counted(run):
        counted = after.counters[GENERATIONS] - before.counters[GENERATIONS]
        ends_s = after.at_s + (0.0 if after.moment == "after" else LOOK_S)
        ours = [sample for sample in _all(run) if before.at_s <= sample.sent_s <= ends_s]
        answered = sum(1 for sample in ours if sample.failure is None or sample.failure.is_answer)
        if counted < 0:
            yield Mark("restarted", "the appliance was restarted during the run", "measure again")
        elif counted > len(ours):
            others = round(counted - answered)
            reason = f"the node served others too: {others} of {round(counted)} generations were not ours"
            yield Mark("other_requests", reason, "measure when nobody else uses the node")


def reloads(run: Run) -> Iterator[Mark]:
    loads = sum(after.counters.get(LOADS, 0) - before.counters.get(LOADS, 0) for before, after in _counted(run))
    slow = [s for s in _measured(run) if s.counts and (s.counts.load_ms or 0.0) > LOAD_LIMIT_MS]
    if loads > 0 or slow:
        remedy = "let nothing else use the engine, and raise OLLAMA_KEEP_ALIVE if the model leaves memory"
        yield Mark("reloaded", "the engine loaded the model during the run", remedy)


def cached_prompts(run: Run) -> Iterator[Mark]:
    """Template and system prompt are the same in all prompts, so the engine may have them; no more than those."""
    if run.calibration is None:
        return
    allowed = run.calibration.overhead_tokens + CACHED_SLACK_TOKENS
    helped = [s for s in _measured(run) if s.counts and (s.counts.cached_tokens or 0) > allowed]
    if helped:
        reason = f"the engine knew {len(helped)} prompts from before, so their TTFT is not that of new ones"
        yield Mark("cached_prompts", reason, "measure with another --seed")


def short_answers(run: Run) -> Iterator[Mark]:
    answered = [sample.counts for sample in _measured(run) if sample.counts]
    early = sum(1 for counts in answered if counts.completion_tokens < run.settings.max_tokens)
    if answered and early > EARLY_SHARE * len(answered):
        reason = f"{early} of {len(answered)} answers are shorter than {run.settings.max_tokens} tokens"
        remedy = "their E2E does not compare; choose fewer --max-tokens, or raise N_CTX if it leaves no room for them"
        yield Mark("short_answers", reason, remedy, is_invalid=False)


def prompt_lengths(run: Run) -> Iterator[Mark]:
    """The trace is calibrated on one node's model; another model may count otherwise."""
    found = [(s.wanted_tokens, s.counts.prompt_tokens) for s in _measured(run) if s.counts]
    off = [got / wanted for wanted, got in found if abs(got - wanted) > LENGTH_SHARE * wanted]
    if found and len(off) > len(found) / 2:
        reason = f"prompts have {median(off):.2f} times the tokens that were asked for"
        remedy = "has this node another model than the first? Where the template is long, ask for longer prompts"
        yield Mark("prompt_lengths", reason, remedy, is_invalid=False)


def board(run: Run) -> Iterator[Mark]:
    """Throttling, undervoltage, clock drops, swapping and restarts, as the node itself told in each sitting."""
    for before, between, end in _sittings(run):
        looks = [
            look.node
            for look in between
            if look.node and (board_validity.is_steady(look.node) or _is_under_load(run, look.at_s))
        ]
        told = [look.node for look in (*between, end) if look.node]  # one that is gone told before
        yield from board_validity.marks(before.node, told[-1] if told else None, looks)


# Another cause is another function here.
CHECKS: tuple[Callable[[Run], Iterator[Mark]], ...] = (
    late_client,
    other_requests,
    reloads,
    cached_prompts,
    short_answers,
    prompt_lengths,
    board,
)


def _is_under_load(run: Run, at_s: float) -> bool:
    """Whether it surely generated then: between two requests of an open loop it may have been idle."""
    stages = [stage for stage in run.stages if isinstance(stage.load, ClosedLoop)]
    return any(stage.began_s <= at_s <= (stage.full_until_s or stage.ended_s or at_s) for stage in stages)


def _all(run: Run) -> list[Sample]:
    return [sample for stage in run.stages for sample in (*stage.dropped, *stage.samples)]


def _measured(run: Run) -> list[Sample]:
    return [sample for sample in _all(run) if sample.is_measured]


def _sittings(run: Run) -> Iterator[tuple[Facts, list[Facts], Facts]]:
    """Each sitting's look before it, those during it, and its end.

    The end is the look after it; of a sitting that was cut off, the last that there is.
    """
    sittings: list[list[Facts]] = []
    for facts in run.facts:
        if facts.moment == "before":
            sittings.append([])
        if sittings:
            sittings[-1].append(facts)
    for before, *later in sittings:
        if later:
            yield before, [facts for facts in later if facts.moment == "during"], later[-1]


def _counted(run: Run) -> Iterator[tuple[Facts, Facts]]:
    """Pairs of looks at the node's counters: of each sitting the first, and the last that told them."""
    for before, between, end in _sittings(run):
        ends = [facts for facts in (*between, end) if GENERATIONS in facts.counters]
        if GENERATIONS in before.counters and ends:
            yield before, ends[-1]
