"""The options of commands that measure blocks: `bench tune` and `bench verify`."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, get_args

import click

from bench.running.cooling import COOL_TO_C
from bench.tuning.objective import Objective

OF_A_BLOCK = ("objective", "max_tokens", "seed", "with_restarts")

OPTIONS = (
    click.option(
        "--objective", type=click.Choice(get_args(Objective)), default="throughput", show_default=True,
        help="throughput: decode tokens/s. latency: of an answer of 128 tokens. balanced: both alike.",
    ),
    click.option(
        "--restarts", "with_restarts", is_flag=True,
        help="Measure also what needs a restart: slots, flash attention, the KV cache's type; through profile.yml.",
    ),
    click.option(
        "--max-tokens", type=click.IntRange(2, 2048), default=32, show_default=True, help="Length of a block's answer."
    ),
    click.option(
        "--cool-to", "cool_to_c", type=click.FloatRange(20, 120), default=COOL_TO_C, show_default=True,
        help="°C that a board must be down to before each block.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), default=lambda: secrets.randbelow(2**32),
        help="Of the order in rounds; drawn anew if not given.",
    ),
    click.option("--resume", is_flag=True, help="Go on with what each node's interruption left, as that was begun."),
    click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON."),
)  # fmt: skip


def block_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command
