"""How near a node's decode comes to the fastest that its memory allows: the roofline (Williams et al. 2009). Pure but
for the two that have a node measure its memory.

A decode with one sequence reads every weight once a token and does little with each, so memory bounds it:

    tokens/s <= bytes read a second / bytes read a token

Bytes a token are taken to be the size of the model's files. What that leaves out: the KV cache, which is read too (for
qwen2.5:3b 36 KiB a token of context, 18 MiB at 512: 1 % of the weights), so a share is a little too low at long
contexts; and an input embedding of its own, of which a token reads one row, so for models that do not tie it to the
output it is too high, by its part of the file. Of a mixture of experts a token reads a few: there it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from appliance.bandwidth_probe import Bandwidth
from bench.running.client import BenchError, Patience, Target, events, get

PATH = "/node/bandwidth"
ASK = Patience(connect_s=5.0, answer_s=15.0, silence_s=15.0)
PATIENCE = Patience(answer_s=300.0)  # generations that run end first


def ceiling_tokens_per_s(facts: Mapping[str, Any] | None) -> float | None:
    """The most tokens/s that this node's memory allows for its model; None where that is not known.

    facts: what GET /node answers.
    """
    node: Mapping[str, Any] = facts or {}
    read = (node.get("bandwidth") or {}).get("bytes_per_s")
    model: Mapping[str, Any] = node.get("model") or {}
    size, family = model.get("size_bytes"), str(model.get("family") or "")
    if not read or not size or "moe" in family.lower():
        return None
    return float(read) / float(size)


def share(decode_tokens_per_s: float | None, facts: Mapping[str, Any] | None) -> float | None:
    """Decode speed of one sequence as a share of the ceiling; more than 1 means that one of the two is wrong."""
    ceiling = ceiling_tokens_per_s(facts)
    return None if ceiling is None or decode_tokens_per_s is None else decode_tokens_per_s / ceiling


def measured_once(target: Target) -> None:
    """Have the node measure its bandwidth, if it has not since its service began, so that it is among its facts.

    Nothing depends on it: a node that does not, or cannot, is passed over.
    """
    with suppress(BenchError, msgspec.MsgspecError):
        status, body = get(target, "/node", ASK)
        facts = msgspec.json.decode(body, type=dict[str, Any]) if status == 200 else {}
        if "bandwidth" in facts and not facts["bandwidth"]:
            bandwidth(target)


def bandwidth(target: Target, patience: Patience = PATIENCE) -> Bandwidth:
    """Have the node measure it, alone, in a few seconds; GET /node then has it as long as the service runs.

    Raises: BenchError; RequestFailed also where the node is of a version without it.
    """
    result = b"".join([data for name, data in events(target, PATH, b"", patience) if name == "result"])
    try:
        return msgspec.json.decode(result, type=Bandwidth)
    except msgspec.MsgspecError as error:
        raise BenchError(f"{target.name}: {PATH} answered what is no bandwidth: {error}.") from error
