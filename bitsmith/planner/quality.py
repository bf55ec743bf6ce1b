"""What formats lose: measured by this project on its reference model, apart from what others published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitsmith.recipe.plan import Target

SOURCE = "mean KLD of the reference model on held-out text, docs/quality.md"


@dataclass(frozen=True)
class Loss:
    """Mean KLD in nats a token: of the nearest codes, and with a calibration (GPTQ); None where not measured."""

    plain: float
    calibrated: float | None = None


MEASURED: Mapping[str, Loss] = {
    "f32": Loss(0.0),
    "f16": Loss(0.0),
    "bf16": Loss(0.0),
    "q8_0": Loss(0.000056),
    "compressed/w8a8": Loss(0.00048, 0.00036),
    "q6_k": Loss(0.000524),
    "q5_k_m": Loss(0.000935),
    "compressed/fp8": Loss(0.00107),
    "q4_k_m": Loss(0.002493, 0.00131),
    "iq4_xs": Loss(0.003323, 0.00193),
    "q4_0": Loss(0.005459, 0.00253),
    "compressed/w4a16": Loss(0.00750, 0.00227),
    "gptq/int4": Loss(0.00750, 0.00227),
    "native/int4": Loss(0.00750, 0.00227),
    "q3_k_m": Loss(0.010794, 0.00558),
    "native/int3": Loss(0.04172, 0.00963),
    "q2_k": Loss(0.046645, 0.02383),
}


def measured(target: Target) -> Loss | None:
    """What was measured of a format; None where nothing was."""
    return MEASURED.get(target.name if target.container == "gguf" else str(target))


def rank(target: Target, bits: float) -> float:
    """A number that grows with the loss: what was measured, else what its bits a weight make likely.

    KLD falls by four with each bit: the measured ones lie near 0.6 * 4^-(bits - 1).
    """
    loss = measured(target)
    if loss is not None:
        return loss.plain
    return 0.0 if bits >= 16 else 0.6 * 4.0 ** -(bits - 1)
