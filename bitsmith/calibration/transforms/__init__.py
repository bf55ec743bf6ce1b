"""Transforms by name: one visible table. A transform rescales the inputs of linears before they are rounded.

A new transform is one file with a class as `Transform` describes, and one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitsmith.calibration.transforms.base import Transform
    from bitsmith.quant.input_rounding import InputRounding


@dataclass(frozen=True)
class TransformRow:
    """One row of the table.

    name: as in --method
    make: makes the transform, given how the inputs of a block's linears are rounded, by the linear's name within the
        block; the inputs of others are not
    rounded_inputs_only: whether it helps only if inputs are rounded too
    """

    name: str
    make: Callable[[Mapping[str, InputRounding]], Transform]
    rounded_inputs_only: bool = False


def _awq(inputs: Mapping[str, InputRounding]) -> Transform:
    from bitsmith.calibration.transforms.awq import Awq

    return Awq()


def _smoothquant(inputs: Mapping[str, InputRounding]) -> Transform:
    from bitsmith.calibration.transforms.smoothquant import SmoothQuant

    return SmoothQuant(inputs)


TRANSFORMS: dict[str, TransformRow] = {
    row.name: row
    for row in (TransformRow("awq", _awq), TransformRow("smoothquant", _smoothquant, rounded_inputs_only=True))
}
