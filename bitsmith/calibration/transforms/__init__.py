"""Rescalings of linears' inputs before rounding, by name: one visible table."""

from __future__ import annotations

from bitsmith.calibration.transforms.awq import Awq
from bitsmith.calibration.transforms.base import Rescaling, Transform, rescale_block
from bitsmith.calibration.transforms.smoothquant import SmoothQuant
from bitsmith.quant.input_rounding import InputRounding

TRANSFORMS: dict[str, type[Awq] | type[SmoothQuant]] = {"awq": Awq, "smoothquant": SmoothQuant}


def transform_of(name: str, inputs: InputRounding | None) -> Transform:
    """The transform `name` for linears whose inputs are rounded so, or not at all."""
    if name == "smoothquant" and inputs is not None:
        return SmoothQuant(input_rounding=inputs)
    return TRANSFORMS[name]()


__all__ = ["TRANSFORMS", "Awq", "Rescaling", "SmoothQuant", "Transform", "rescale_block", "transform_of"]
