"""Rescalings of linears' inputs before rounding, by name: one visible table."""

from __future__ import annotations

from bitsmith.transforms.awq import Awq
from bitsmith.transforms.base import Rescaling, Transform, rescale_block
from bitsmith.transforms.smoothquant import SmoothQuant

TRANSFORMS: dict[str, type[Awq] | type[SmoothQuant]] = {"awq": Awq, "smoothquant": SmoothQuant}

__all__ = ["TRANSFORMS", "Awq", "Rescaling", "SmoothQuant", "Transform", "rescale_block"]
