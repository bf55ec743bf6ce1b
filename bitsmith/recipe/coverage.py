"""Coverage: how many tokens of a calibration text each expert of a model saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

STARVED = 32  # tokens; an expert that saw fewer is starved
MOST_STARVED = 0.05  # share of experts that may be starved, where codes depend on what they saw
_WIDTH = 12  # characters of a number in a manifest
_SHOWN = 3


@dataclass(frozen=True)
class Coverage:
    """What the routers did with a calibration text.

    counts: number of tokens that each expert got, int64 [experts], by layer
    tokens: number of tokens of the text
    every: whether the statistics are of all tokens for every expert, whatever the router chose
    fallback: what starved experts got
    """

    counts: Mapping[int, np.ndarray]
    tokens: int
    every: bool = False
    fallback: str = ""

    @property
    def starved(self) -> tuple[tuple[int, int, int], ...]:
        """Layer, number and tokens of each starved expert, those with the fewest tokens first."""
        found = [
            (layer, e, int(count))
            for layer, counts in self.counts.items()
            for e, count in enumerate(counts)
            if count < STARVED
        ]
        return tuple(sorted(found, key=lambda each: each[2]))

    @property
    def summary(self) -> dict[str, int]:
        """Number of experts, fewest, median and most tokens that one saw, and numbers of starved and unused ones."""
        every = np.sort(np.concatenate([np.asarray(each, np.int64) for each in self.counts.values()]))
        return {
            "experts": len(every),
            "least": int(every[0]),
            "median": int(every[len(every) // 2]),
            "most": int(every[-1]),
            "starved": int((every < STARVED).sum()),
            "unused": int((every == 0).sum()),
        }

    @property
    def tokens_needed(self) -> int:
        """About how many tokens of the same text would starve no more than `MOST_STARVED` of the experts."""
        every = np.sort(np.concatenate([np.asarray(each, np.int64) for each in self.counts.values()]))
        critical = max(int(every[int(MOST_STARVED * len(every))]), 1)
        return self.tokens * -(-STARVED // critical)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the summary, and the tokens of every expert by layer."""
        return {
            "tokens": self.tokens,
            "all_experts": self.every,
            **self.summary,
            "starved_below": STARVED,
            "fallback": self.fallback,
            "tokens_by_layer": {str(layer): [int(n) for n in counts] for layer, counts in self.counts.items()},
        }

    def note(self) -> str:
        """For the user, in a sentence."""
        found = self.summary
        said = (
            f"tokens of the calibration text that an expert saw: {found['least']:,} to {found['most']:,}, median "
            f"{found['median']:,}"
        )
        starved = self.starved
        if starved:
            names = ", ".join(f"expert {e} of block {layer}: {count}" for layer, e, count in starved[:_SHOWN])
            more = f" and {len(starved) - _SHOWN:,} more" if len(starved) > _SHOWN else ""
            said += (
                f"; {len(starved):,} of {found['experts']:,} experts saw fewer than {STARVED} ({names}{more}): "
                f"{self.fallback}"
            )
        elif self.every:
            said += "; the statistics are of all tokens for every expert"
        return said


def manifest_text(coverage: Coverage | None) -> str:
    """The coverage for a manifest, as JSON of fixed length; of None, the same with zeros.

    Numbers are followed by spaces, so that the size of a file is known before the text is read.
    """
    found = dict.fromkeys(("experts", "least", "median", "most", "starved", "unused"), 0)
    found |= {} if coverage is None else coverage.summary
    return "{" + ", ".join(f'"{key}": {value:<{_WIDTH}}' for key, value in found.items()) + "}"
