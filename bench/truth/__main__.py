"""`make bench-truth`: how often the statistics are right, on simulated machines whose truth is known.

    --comparisons N   simulated comparisons and series of each question (1,000)
    --races N         simulated races of each question (500)
    --seed S          other machines, other noise
    --json            the rates as JSON, one a line

Each rate is printed with n and its own 95 % confidence interval (Clopper & Pearson). Exit status: 1 when a rate misses
its target.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import chain

from bench.truth.comparison import comparison_rates, coverage_rates
from bench.truth.race import race_rates
from bench.truth.rate import HEAD, Rate


def main(arguments: list[str]) -> int:
    asked = _parsed(arguments)
    if not asked.json:
        print(HEAD, flush=True)
    missed: list[Rate] = []
    rates = chain(
        comparison_rates(asked.comparisons, asked.seed),
        coverage_rates(asked.comparisons, asked.seed),
        race_rates(asked.races, asked.seed),
    )
    for rate in rates:
        print(json.dumps(asdict(rate)) if asked.json else rate.row(), flush=True)
        missed += [] if rate.is_reached else [rate]
    for rate in missed:
        print(f"missed: {rate.name}", file=sys.stderr)
    return 1 if missed else 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench-truth", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--races", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
