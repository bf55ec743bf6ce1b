"""`--method` and `--effort`: what is rescaled first, how codes are chosen, and how long that may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bitsmith.calibration.rounders import ROUNDERS, Rounder
from bitsmith.calibration.transforms import TRANSFORMS
from bitsmith.errors import UsageError, quoted
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.effort import EFFORTS

FINE_BITS = 8  # with so many bits, nearest codes with weighted scales lose almost nothing

# The default rounders of each effort: below 8 bits, and from 8 bits on
_DEFAULTS = {
    "fast": ("nearest", "nearest"),
    "normal": ("gptq", "nearest"),
    "high": ("learned", "gptq"),
    "max": ("learned", "gptq"),
}
MAX_EFFORT = "max"  # after rounding, the scales of the whole model are trained


@dataclass(frozen=True)
class Method:
    """How codes are chosen.

    rounder: a name in `ROUNDERS`
    transform: a name in `TRANSFORMS`, which rescales columns before rounding; "" for none
    """

    rounder: str
    transform: str = ""

    def __str__(self) -> str:
        if not self.transform:
            return self.rounder
        return self.transform if self.rounder == "nearest" else f"{self.transform}+{self.rounder}"

    @property
    def row(self) -> Rounder:
        """The rounder's row in `ROUNDERS`."""
        return ROUNDERS[self.rounder]

    @property
    def needs_text(self) -> bool:
        """Whether the model must run on calibration text; an importance file is not enough."""
        return bool(self.transform) or self.row.needs_text

    @property
    def heeds_effort(self) -> bool:
        """Whether the effort changes the codes."""
        return self.row.heeds_effort

    def fallback(self, every: bool) -> str:
        """What an expert gets that saw too few tokens, in words. every: whether every token counts for every expert"""
        if every:
            return "the statistics are of all tokens for every expert"
        if not self.row.needs_text:
            columns = "their columns are weighted by what they saw, and not at all where they saw nothing"
            return f"they are not rescaled, and {columns}" if self.transform else columns
        codes = "they got the nearest codes" + (" before tuning" if self.row.tuner is not None else "")
        return f"they are not rescaled, and {codes.removeprefix('they ')}" if self.transform else codes

    def hidden_state_buffers(self, effort: str) -> int:
        """Number of hidden-state buffers this method needs."""
        return self.row.hidden_state_buffers(effort)

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read "gptq", "awq", "awq+gptq", ... Raises UsageError on anything else."""
        words = text.strip().lower().split("+")
        transforms = [word for word in words if word in TRANSFORMS]
        rounders = [word for word in words if word in ROUNDERS]
        if len(transforms) + len(rounders) != len(words) or len(transforms) > 1 or len(rounders) > 1:
            raise UsageError(f"--method={quoted(text)}: unknown; known: {', '.join(methods())}.")
        return cls(rounders[0] if rounders else "nearest", transforms[0] if transforms else "")


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(str(Method(rounder, transform)) for transform in ("", *TRANSFORMS) for rounder in ROUNDERS)


def check_effort(effort: str) -> str:
    """Return `effort`. Raises UsageError if it is unknown."""
    if effort not in EFFORTS:
        raise UsageError(f"--effort={quoted(effort)}: unknown; known: {', '.join(EFFORTS)}.")
    return effort


def default_method(formats: Iterable[Format], effort: str, *, inputs: Iterable[InputRounding] = ()) -> Method:
    """The method with the least loss for the time allowed, by the figures of docs/quality.md.

    formats: formats of the quantized tensors
    inputs: how inputs of linears are rounded, for those that are

    Below 8 bits GPTQ chooses the codes, and high effort tunes them by gradients. From 8 bits on, nearest codes lose
    almost nothing, so GPTQ needs high effort. SmoothQuant goes first if inputs become int8. AWQ is never the default:
    on a model with outlying features it beats GPTQ as published, but not GPTQ with corrected inputs and descent.
    """
    fine = all(format.bits >= FINE_BITS for format in formats)
    smooth = effort != "fast" and any(each.type == "int8" for each in inputs)
    return Method(_DEFAULTS[effort][fine], "smoothquant" if smooth else "")
