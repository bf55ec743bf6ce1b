"""Rescalings of linears' inputs before rounding, by name: one visible table."""

from __future__ import annotations

from bitsmith.activations import Activations
from bitsmith.transforms.awq import Awq
from bitsmith.transforms.base import Rescaling, Transform, rescale_block
from bitsmith.transforms.smoothquant import SmoothQuant

TRANSFORMS: dict[str, type[Awq] | type[SmoothQuant]] = {"awq": Awq, "smoothquant": SmoothQuant}


def transform_of(name: str, inputs: Activations | None) -> Transform:
    """The transform `name` for linears whose inputs are rounded so, or not at all."""
    if name == "smoothquant" and inputs is not None:
        return SmoothQuant(activations=inputs)
    return TRANSFORMS[name]()


__all__ = ["TRANSFORMS", "Awq", "Rescaling", "SmoothQuant", "Transform", "rescale_block", "transform_of"]
