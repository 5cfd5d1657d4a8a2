"""A rate that simulations found: hits of n, its own interval, its target."""

from __future__ import annotations

from dataclasses import dataclass

from bench.statistics.intervals import Interval, rate_interval


@dataclass(frozen=True)
class Rate:
    """So many of n; `least` and `most` are the target, None where there is none."""

    name: str
    hits: int
    n: int
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def share(self) -> float:
        return self.hits / self.n

    @property
    def ci95(self) -> Interval:
        return rate_interval(self.hits, self.n)

    @property
    def is_reached(self) -> bool:
        return (self.least is None or self.share >= self.least) and (self.most is None or self.share <= self.most)

    def row(self) -> str:
        low, high = self.ci95
        assert low is not None
        assert high is not None
        verdict = "" if self.least is None and self.most is None else "yes" if self.is_reached else "NO"
        interval = f"{low:.1%}-{high:.1%}"
        return (
            f"| {self.name} | {self.share:.1%} | {interval} | {self.n} | {self._target()} | {verdict} | {self.note} |"
        )

    def _target(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:.0%}-{self.most:.0%}"
        if self.least is not None:
            return f"at least {self.least:.0%}"
        return "" if self.most is None else f"at most {self.most:.0%}"


HEAD = "| what | rate | 95 % CI | n | target | reached | |\n|---|---|---|---|---|---|---|"
