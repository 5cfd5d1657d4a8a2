"""Where a node is full: the sweep's next load, and the load from which throughput grows no more. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench.running.summary import Estimate

GROWTH = 0.05  # less is none: a node that serves twice as many for 5 % more tokens only makes them wait
FAILED_SHARE = 0.05


class Point(msgspec.Struct, frozen=True):
    """What one concurrency gave. failed_share: of its measured requests."""

    concurrency: int
    tokens_per_s: Estimate
    ttft_p95_ms: float | None
    failed_share: float


class Saturation(msgspec.Struct, frozen=True):
    """The least concurrency with the throughput that more of it does not beat.

    is_found: false where the sweep ended while throughput still grew.
    """

    concurrency: int
    tokens_per_s: Estimate
    is_found: bool
    reason: str


def next_concurrency(points: Sequence[Point], limit: int) -> int | None:
    """The next load of a sweep: 1, then doubled, the limit itself last. None when it is over.

    1. The last load's failures are more than FAILED_SHARE: more load only makes more of them.
    2. Two doublings in a row did not raise throughput: one may be chance.
    3. The limit is reached.
    """
    if not points:
        return 1
    last = points[-1].concurrency
    if points[-1].failed_share > FAILED_SHARE or last >= limit:
        return None
    if len(points) >= 3 and not grew(points[-3], points[-2]) and not grew(points[-3], points[-1]):
        return None
    return min(2 * last, limit)


def saturation(points: Sequence[Point]) -> Saturation | None:
    """Where throughput stops growing; None where nothing was measured.

    1. Only loads count of which at most FAILED_SHARE failed.
    2. The knee is the least concurrency that no larger one surely beats by GROWTH or more.
    3. It is found when a larger load was measured, or failed; else the sweep ended before saturation.
    """
    sound = [point for point in points if point.failed_share <= FAILED_SHARE]
    if not sound:
        return None
    knee = next(p for i, p in enumerate(sound) if not any(grew(p, larger) for larger in sound[i + 1 :]))
    beyond = [point for point in points if point.concurrency > knee.concurrency]
    if not beyond:
        why = "throughput still grew at the largest load that was measured"
    elif beyond[0].failed_share > FAILED_SHARE:
        why = f"at {beyond[0].concurrency} at once {beyond[0].failed_share:.0%} of the requests fail"
    else:
        best = max(beyond, key=lambda point: point.tokens_per_s.value)
        gain = best.tokens_per_s.value / knee.tokens_per_s.value - 1 if knee.tokens_per_s.value else 0.0
        why = f"{best.concurrency} at once give {gain:+.1%}, which is less than {GROWTH:.0%} or within the noise"
    return Saturation(knee.concurrency, knee.tokens_per_s, bool(beyond), why)


def grew(smaller: Point, larger: Point) -> bool:
    """Whether the larger load surely gave more: by GROWTH at least, and its interval lies above the other's value."""
    before, after = smaller.tokens_per_s, larger.tokens_per_s
    return after.value >= before.value * (1 + GROWTH) and (after.low is None or after.low > before.value)
