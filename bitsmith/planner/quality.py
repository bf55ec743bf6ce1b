"""Loss of each format, measured by this project on its reference model. Figures of others are in `published`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitsmith.containers.schemes import parse
from bitsmith.quant.formats import get_format
from bitsmith.recipe.target import Target

SOURCE = "mean KLD of our small reference model, docs/quality.md"
RUINED = 0.1  # nats; a format that loses this much or more is never advised
_LEAST_BITS = 3.0  # bits a code; a format with fewer that was not measured is never advised


@dataclass(frozen=True)
class Loss:
    """Mean KLD in nats a token: `plain` with the nearest codes, `calibrated` with GPTQ; None if not measured.

    Nearest codes of IQ1 to IQ3, which need importance, are those with weighted scales.
    """

    plain: float
    calibrated: float | None = None


_INT4 = Loss(0.00750, 0.00227)
_FP8 = Loss(0.00107)

MEASURED: Mapping[str, Loss] = {
    "f32": Loss(0.0),
    "f16": Loss(0.0),
    "bf16": Loss(0.0),
    "q8_0": Loss(0.000056),
    "compressed/w8a8": Loss(0.00048, 0.00036),
    "q6_k": Loss(0.000524),
    "q5_k_m": Loss(0.000935),
    "compressed/fp8": _FP8,
    "native/fp8": _FP8,  # the same values
    "q4_k_m": Loss(0.002493, 0.00131),
    "iq4_xs": Loss(0.003323, 0.00193),
    "q4_0": Loss(0.005459, 0.00253),
    "compressed/w4a16": _INT4,
    "gptq/int4": _INT4,
    "awq/int4": Loss(0.00750, 0.00191),
    "native/int4": _INT4,
    "q3_k_m": Loss(0.010794, 0.00558),
    "native/int3": Loss(0.04172, 0.00963),
    "gptq/int3": Loss(0.04172, 0.00963),
    "iq3_xxs": Loss(0.01941, 0.00818),
    "q2_k": Loss(0.046645, 0.01494),
    "iq2_m": Loss(0.02757, 0.01211),
    "iq2_xs": Loss(0.06242, 0.02599),
    "native/int2": Loss(0.642, 0.140),  # in groups of 64; docs/LOG.md
    "gptq/int2": Loss(0.642, 0.140),
}


def measured(target: Target) -> Loss | None:
    """The measured loss of a format; None if it was not measured."""
    return MEASURED.get(target.name if target.container == "gguf" else str(target))


def rank(target: Target | None, bits: float, loss: Loss | None) -> tuple[int, float]:
    """Sort key that grows with the loss. Formats without a measurement come last, ordered by the bits of their codes.

    target: None for an existing file with `bits` bits a weight
    loss: the measured loss of what would be made; None if it was not measured
    """
    if loss is not None:
        return 0, loss.plain
    if target is None and bits >= 16:
        return 0, 0.0
    return 1, -_code_bits(target, bits)


def advisable(target: Target | None, bits: float, loss: Loss | None) -> bool:
    """Whether a plan may advise this format; the arguments are those of `rank`."""
    return loss.plain < RUINED if loss is not None else _code_bits(target, bits) >= _LEAST_BITS


def _code_bits(target: Target | None, bits: float) -> float:
    """Bits of one code, without scales and without the tensors that stay in 16 bits."""
    if target is None or target.container == "gguf":
        return bits
    if target.container == "native":
        return bits if target.name in ("f32", "f16", "bf16") else float(get_format(target.name).bits)
    return float(parse(target.container, target.name).bits)
