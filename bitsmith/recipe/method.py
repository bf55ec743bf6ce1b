"""`--method` and `--effort`: what is rescaled first, how codes are chosen, and how long that may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bitsmith.errors import UsageError
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.effort import EFFORTS

TRANSFORMS = ("awq", "smoothquant")
ROUNDERS = ("nearest", "gptq", "learned")
FINE_BITS = 8  # from here on the nearest codes under weighted scales lose next to nothing


@dataclass(frozen=True)
class Method:
    """How codes come about.

    rounder: "nearest", "gptq" (block by block behind the quantized prefix; as published where the effort is fast, with
        coordinate descent, refitted scales and corrected inputs otherwise), or "learned" (GPTQ's codes and scales
        tuned by gradients, a block at a time)
    transform: "awq" or "smoothquant" rescales columns before; "" does not
    """

    rounder: str
    transform: str = ""

    def __str__(self) -> str:
        if not self.transform:
            return self.rounder
        return self.transform if self.rounder == "nearest" else f"{self.transform}+{self.rounder}"

    @property
    def needs_text(self) -> bool:
        """Whether the model must run on calibration text; an importance file is not enough."""
        return bool(self.transform) or self.rounder != "nearest"

    def hidden_state_buffers(self, effort: str) -> int:
        """Hidden states that are kept: of the quantized prefix, of the original, and a block's input to learn from."""
        gptq = 2 if EFFORTS[effort].corrects else 1
        return {"nearest": 1, "gptq": gptq, "learned": 3}[self.rounder]

    @property
    def heeds_effort(self) -> bool:
        """Whether the effort changes the codes."""
        return self.rounder != "nearest"

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read "gptq", "awq", "awq+gptq", ... Raises UsageError on anything else."""
        words = text.strip().lower().split("+")
        transforms = [word for word in words if word in TRANSFORMS]
        rounders = [word for word in words if word in ROUNDERS]
        if len(transforms) + len(rounders) != len(words) or len(transforms) > 1 or len(rounders) > 1:
            raise UsageError(f"--method {text}: unknown; known: {', '.join(METHODS)}.")
        return cls(rounders[0] if rounders else "nearest", transforms[0] if transforms else "")


METHODS = tuple(str(Method(rounder, transform)) for transform in ("", *TRANSFORMS) for rounder in ROUNDERS)


def check_effort(effort: str) -> str:
    """`effort`. Raises UsageError where it is none."""
    if effort not in EFFORTS:
        raise UsageError(f"--effort {effort}: unknown; known: {', '.join(EFFORTS)}.")
    return effort


def default_method(formats: Iterable[Format], effort: str, *, inputs: Iterable[InputRounding] = ()) -> Method:
    """What loses least for the time allowed, by the figures of docs/quality.md.

    formats: of the tensors that are quantized; inputs: how what they are multiplied with is rounded, where it is

    GPTQ chooses codes of less than 8 bits, and with much effort gradients tune them; from 8 bits on, where the nearest
    lose next to nothing, GPTQ comes with much effort only. SmoothQuant goes before where inputs become int8. AWQ is
    never the default: in none of our measurements did it gain over GPTQ.
    """
    fine = all(format.bits >= FINE_BITS for format in formats)
    ladder = {"fast": "nearest", "normal": "nearest" if fine else "gptq", "high": "gptq" if fine else "learned"}
    smooth = effort != "fast" and any(each.type == "int8" for each in inputs)
    return Method(ladder[effort], "smoothquant" if smooth else "")
