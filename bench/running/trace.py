"""What is asked, and when: prompts of chosen lengths, and times of arrival. Pure; the same seed gives the same bytes.

Must not know: who asks, and what came of it. Randomness comes from `random.Random` seeded with text, which Python
promises to keep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

import msgspec

# Common words of four letters: with the space before it each is one token in the vocabularies of Llama and Qwen, and
# all are of one length for a tokenizer that knows only characters. 256, so that a serial number's bytes choose them.
_SPELLED = """
able aged also area army aunt baby back ball band bank barn base bath beam bean bear beat bell belt bend bird
blue boat body bold bone book boot born boss both bowl busy cake calm camp card care cart case cash cast cave
cell chin chip city clay club coal coat code coin cold cook cool cord corn cost crew crop dark data date deal
dear deck deep deer desk dish dock door down drop drum dust duty each earn ease east easy edge else even ever
exit face fact fair fall farm fast fear feed feel file fill film fine fire fish flag flat flow fold folk food
foot form four free fuel full fund gain game gate gift girl glad goal goat gold golf good gray grew grid grip
grow half hall hand hard head heat hero hill hint hold hole home hook hope horn host hour huge hunt idea inch
iron item join jump june july just keep kick kind king knee lady lake lamp land lane last late lawn lead leaf
left lens life lift line lion list live load lock logo long look loop lost loud love luck main make many mark
mask mass meal meat menu mild milk mind mine moon more most move much myth name navy near neck need nest news
nice nine node none noon nose note once only open oven over pace pack page pain pair palm park part past path
peak pile pine pink pipe plan play plot pond pool port post pure quiz
"""
WORDS = _SPELLED.split()
ENDING = ". Write this list of words again and again, and never stop:"
BEGINNING_WORDS = 4  # they spell the serial number: no two prompts of one seed begin alike
SERIALS = len(WORDS) ** BEGINNING_WORDS
NUMBERS = 1_000_000  # prompts in one part of one stage
PROMPT_LIMIT_CHARS = 8192
LONGEST_WORDS = (PROMPT_LIMIT_CHARS - len(ENDING)) // 5

Part = Literal["warm_up", "measured", "calibration"]
PARTS: tuple[Part, ...] = ("warm_up", "measured", "calibration")
Arrivals = Literal["constant", "poisson"]


class Calibration(msgspec.Struct, frozen=True):
    """How a model counts our prompts: tokens = overhead_tokens + tokens_per_word * words.

    The overhead is the chat template, the model's own system prompt and ENDING.
    """

    overhead_tokens: float = 20.0
    tokens_per_word: float = 1.0

    @classmethod
    def of(cls, short: tuple[int, int], long: tuple[int, int]) -> Calibration:
        """From two prompts' (words, tokens), the second with more words and more tokens."""
        per_word = (long[1] - short[1]) / (long[0] - short[0])
        return cls(round(short[1] - per_word * short[0], 3), round(per_word, 6))

    def words_for(self, tokens: int) -> int:
        """As many words as make a prompt of about so many tokens; never fewer than spell its serial number."""
        return max(BEGINNING_WORDS, round((tokens - self.overhead_tokens) / self.tokens_per_word))

    def tokens_of(self, words: int) -> int:
        return round(self.overhead_tokens + self.tokens_per_word * words)


class Prompt(NamedTuple):
    """One prompt of a trace. `wanted_tokens` is the length that was asked for."""

    number: int
    part: Part
    text: str
    wanted_tokens: int


@dataclass(frozen=True)
class Trace:
    """Prompts by seed, stage, part and number; nothing else decides their bytes.

    lengths: wanted lengths in tokens; each block of as many prompts has each once, in an order drawn by the seed.
    """

    seed: int
    lengths: tuple[int, ...]
    calibration: Calibration

    def prompt(self, stage: int, part: Part, number: int) -> Prompt:
        """The prompt of this place. Raises: ValueError beyond the places there are."""
        tokens = self._length(stage, part, number)
        return Prompt(number, part, self.text(stage, part, number, self.calibration.words_for(tokens)), tokens)

    def text(self, stage: int, part: Part, number: int, words: int) -> str:
        """So many words, the first of which are no other prompt's of this seed, and the same ending for all."""
        serial = (stage * len(PARTS) + PARTS.index(part)) * NUMBERS + number
        if not (0 <= number < NUMBERS and 0 <= serial < SERIALS):
            raise ValueError(f"stage {stage}, number {number}: a trace has no such prompt")
        draw = Random(f"{self.seed}/{serial}/words")
        rest = draw.choices(WORDS, k=max(0, words - BEGINNING_WORDS))
        return " ".join([*self._beginning(serial), *rest])[: PROMPT_LIMIT_CHARS - len(ENDING)] + ENDING

    def digest(self) -> str:
        """Names the bytes of this trace: equal in all runs that asked the same."""
        parts = [self.prompt(stage, "measured", number).text for stage in (0, 1) for number in range(4)]
        said = f"{self.seed}/{self.lengths}/{self.calibration}/{parts}"
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def _length(self, stage: int, part: Part, number: int) -> int:
        block, place = divmod(number, len(self.lengths))
        order = list(self.lengths)
        Random(f"{self.seed}/{stage}/{part}/{block}/lengths").shuffle(order)
        return order[place]

    def _beginning(self, serial: int) -> Sequence[str]:
        """The serial number, scattered over all there are by a map that is one to one since its factor is odd."""
        draw = Random(f"{self.seed}/beginnings")
        scattered = (serial * (draw.randrange(SERIALS) | 1) + draw.randrange(SERIALS)) % SERIALS
        return [WORDS[byte] for byte in scattered.to_bytes(BEGINNING_WORDS, "little")]


def arrivals(kind: Arrivals, rate_per_s: float, count: int, seed: str) -> list[float]:
    """When `count` requests are to be sent, in seconds from the first, which comes at 0.

    Poisson: gaps are exponential with mean 1 / rate, so that the past says nothing of the next arrival.
    """
    if kind == "constant":
        return [number / rate_per_s for number in range(count)]
    draw, at, times = Random(f"{seed}/arrivals"), 0.0, []
    for _ in range(count):
        times.append(at)
        at += draw.expovariate(rate_per_s)
    return times
