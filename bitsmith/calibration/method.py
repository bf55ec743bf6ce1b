"""`--method` and `--effort`: what is rescaled first, how codes are chosen, and how long that may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bitsmith.calibration.rounders import ROUNDERS, Rounder
from bitsmith.calibration.transforms import TRANSFORMS
from bitsmith.errors import UsageError
from bitsmith.quant.formats.base import Format
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.rounders.effort import EFFORTS

FINE_BITS = 8  # from here on the nearest codes under weighted scales lose next to nothing

# The default by effort, for codes of less than 8 bits and for those of 8 and more
_DEFAULTS = {"fast": ("nearest", "nearest"), "normal": ("gptq", "nearest"), "high": ("learned", "gptq")}


@dataclass(frozen=True)
class Method:
    """How codes come about.

    rounder: of `ROUNDERS`; transform: of `TRANSFORMS`, which rescales columns before; "" does not
    """

    rounder: str
    transform: str = ""

    def __str__(self) -> str:
        if not self.transform:
            return self.rounder
        return self.transform if self.rounder == "nearest" else f"{self.transform}+{self.rounder}"

    @property
    def row(self) -> Rounder:
        """The rounder."""
        return ROUNDERS[self.rounder]

    @property
    def needs_text(self) -> bool:
        """Whether the model must run on calibration text; an importance file is not enough."""
        return bool(self.transform) or self.row.needs_text

    @property
    def heeds_effort(self) -> bool:
        """Whether the effort changes the codes."""
        return self.row.heeds_effort

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
            raise UsageError(f"--method {text}: unknown; known: {', '.join(methods())}.")
        return cls(rounders[0] if rounders else "nearest", transforms[0] if transforms else "")


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(str(Method(rounder, transform)) for transform in ("", *TRANSFORMS) for rounder in ROUNDERS)


def check_effort(effort: str) -> str:
    """`effort`. Raises UsageError where it is none."""
    if effort not in EFFORTS:
        raise UsageError(f"--effort {effort}: unknown; known: {', '.join(EFFORTS)}.")
    return effort


def default_method(formats: Iterable[Format], effort: str, *, inputs: Iterable[InputRounding] = ()) -> Method:
    """The method with the least loss for the time allowed, by the figures of docs/quality.md.

    formats: of the tensors that are quantized; inputs: how inputs of products are rounded, where they are

    Codes of less than 8 bits are chosen by GPTQ, and with high effort tuned by gradients. From 8 bits on the nearest
    codes lose next to nothing, and GPTQ comes with high effort only. SmoothQuant goes before where inputs become int8.
    AWQ is never the default: in none of our measurements did it gain over GPTQ.
    """
    fine = all(format.bits >= FINE_BITS for format in formats)
    smooth = effort != "fast" and any(each.type == "int8" for each in inputs)
    return Method(_DEFAULTS[effort][fine], "smoothquant" if smooth else "")
