"""Generated from Sampling by `python bench/freeze_words.py`: keywords of `LanguageModel.generate`."""

from __future__ import annotations

from typing import TypedDict


class SamplingWords(TypedDict, total=False):
    """Options of `LanguageModel.generate`, see `bitsmith.runtime.sampling`."""

    temperature: float
    """Higher values give more varied text; 0 takes the most likely token each time."""

    top_k: int
    """Keep the N most likely tokens; 0: all."""

    top_p: float
    """Keep the most likely tokens that together have this probability; 1: all."""

    min_p: float
    """Drop tokens whose probability is below this share of the highest; 0: none."""

    repeat_penalty: float
    """Values above 1 make the last 64 tokens less likely to come again; 1: off."""

    seed: int | None
    """The same seed gives the same text; default: a new one each time."""
