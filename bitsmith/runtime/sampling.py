"""Sampling: how the next token is drawn, as options of the command line and keywords of the library."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bitsmith.errors import UsageError, quoted
from bitsmith.system.options import check_types, check_words, option

if TYPE_CHECKING:
    from bitsmith.runtime.sampling_words import SamplingWords

PENALTY_WINDOW = 64  # tokens that repeat_penalty looks back on, as in llama.cpp


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The steps are llama.cpp's, in its order.

    They are repeat_penalty, top_k, top_p, min_p, temperature. Raises UsageError for values out of range.
    """

    temperature: float = option(
        0.8,
        "--temperature",
        "--temp",
        group="Sampling",
        help="Higher values give more varied text; 0 takes the most likely token each time.",
    )
    top_k: int = option(40, group="Sampling", help="Keep the N most likely tokens; 0: all.")
    top_p: float = option(
        0.95, group="Sampling", help="Keep the most likely tokens that together have this probability; 1: all."
    )
    min_p: float = option(
        0.05, group="Sampling", help="Drop tokens whose probability is below this share of the highest; 0: none."
    )
    repeat_penalty: float = option(
        1.0, group="Sampling", help="Values above 1 make the last 64 tokens less likely to come again; 1: off."
    )
    seed: int | None = option(
        None, group="Sampling", help="The same seed gives the same text; default: a new one each time."
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name, sound, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "in 0..1"),
            ("repeat_penalty", 0 < self.repeat_penalty < math.inf, "more than 0"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not sound:
                flag, value = name.replace("_", "-"), quoted(vars(self)[name])
                raise UsageError(f"--{flag}={value}: expected {expected}.")


DEFAULT = Sampling()
GREEDY = Sampling(temperature=0.0)


def chosen_sampling(function: str, sampling: Sampling | None, words: SamplingWords) -> Sampling:
    """The sampling that a caller asks for: `sampling` (None: the default), with keywords in place of its fields.

    function: name of the function that the user called
    Raises TypeError for an unknown keyword, UsageError for a value out of range.
    """
    check_words(function, Sampling, words, further=("max_tokens", "lookup", "sampling"))
    return replace(sampling or DEFAULT, **words)
