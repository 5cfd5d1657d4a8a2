"""The targets of the gateway, each judged from the measures. Ratios and differences are against the floor, same run."""

from __future__ import annotations

from bench.gateway.figures import Verdict, judge, judge_all
from bench.gateway.measuring import Measures, over_the_engine

US, FLOOR = "appliance", "floor"


def verdicts(measures: Measures) -> list[Verdict]:
    ttft = over_the_engine(measures.added_ttft)
    return [
        judge("added TTFT p50 <= 1.5 x floor", ttft.paired(US, FLOOR, "ratio", 0.5), 1.5, " x"),
        judge(
            "delay a token p50, 4 streams <= 1.2 x floor", measures.delay[4].paired(US, FLOOR, "ratio", 0.5), 1.2, " x"
        ),
        judge("CPU of 1000 tokens, 4 streams <= 1.2 x floor", measures.token_cpu.paired(US, FLOOR, "ratio"), 1.2, " x"),
        judge("PSS idle <= floor + 15 MiB", measures.idle_pss.paired(US, FLOOR, "difference"), 15, " MiB more"),
        judge(
            "PSS under 500 streams <= floor + 30 MiB",
            measures.crowd_pss[500].paired(US, FLOOR, "difference"),
            30,
            " MiB more",
        ),
        all_complete(measures, 500),
        exact_burst(measures),
        judge("the 429 within 50 ms at p99", measures.refusal.by_round(US, 0.99), 50, " ms"),
        judge("ready within 2 s", measures.ready.by_round(US), 2, " s"),
        judge_all("leaving mid-stream seen within 50 ms", measures.leave_stream.values(US), 50, " ms"),
        judge_all("leaving in prefill seen within 50 ms", measures.leave_prefill.values(US), 50, " ms"),
        judge_all(
            "no token after a leaving",
            measures.leave_stream_tokens.values(US) + measures.leave_prefill_tokens.values(US),
            0,
            " tokens",
        ),
    ]


def all_complete(measures: Measures, streams: int) -> Verdict:
    counts = measures.completed[streams].values(US)
    target = f"all {streams} slow streams complete"
    if not counts:
        return Verdict(target, "-", None)
    return Verdict(target, f"{min(counts):.0f} of {streams} (fewest of {len(counts)} rounds)", min(counts) == streams)


def exact_burst(measures: Measures, answered: int = 12, refused: int = 52) -> Verdict:
    """4 run, 8 wait, 52 are told to come back, with when."""
    target = f"{answered} answered and {refused} refused with Retry-After"
    bursts = measures.bursts.get(US, [])
    if not bursts:
        return Verdict(target, "-", None)
    wanted = {"answered": answered, "refused": refused, "with Retry-After": refused}
    odd = [burst for burst in bursts if burst != wanted]
    return Verdict(
        target, f"{odd[0]} in {len(odd)} of {len(bursts)} rounds" if odd else f"in all {len(bursts)} rounds", not odd
    )
