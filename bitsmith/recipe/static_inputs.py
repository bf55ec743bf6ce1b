"""Checks that a calibration measures the inputs whose scales are stored with the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.plan import PlannedTensor
from bitsmith.recipe.target import Target

_WITHOUT_INPUTS = {  # the like target without stored ranges
    "modelopt/nvfp4": "modelopt/nvfp4a16",
    "modelopt/fp8": "compressed/fp8",
    "modelopt/w4a8": "modelopt/int4",
}


def inputs_wanted(tensors: Iterable[PlannedTensor]) -> tuple[str, ...]:
    """GGUF names, without ".weight", of the linears whose inputs a calibration must measure."""
    return tuple(tensor.linear or tensor.info.name for tensor in tensors if tensor.wants_input)


def check_inputs(target: Target, tensors: Iterable[PlannedTensor], calibration: CalibrationRecord | None) -> None:
    """Check that the calibration measures every input whose scale is stored.

    Raises UsageError without such a calibration, UnsupportedError for a layer whose input cannot be measured.
    """
    wanting = [tensor for tensor in tensors if tensor.wants_input]
    if not wanting:
        return
    instead = _instead(target)
    if calibration is None or calibration.seed is None:
        given = "" if calibration is None else f". {calibration.source} is an importance file, without activations"
        raise UsageError(
            f"{target} stores the range of every layer's input ({wanting[0].info.name} and {len(wanting) - 1} more), "
            f"which a calibration must measure{given}. Give --calibration=default or a text"
            f"{f', or write {instead}, which needs none' if instead else ''}."
        )
    for tensor in wanting:
        if tensor.linear is None:
            raise UnsupportedError(
                f"{tensor.info.name}: the calibration does not measure this layer's input; keep it in 16 bits with "
                f"--keep='{re.escape(tensor.info.name)}'{f', or write {instead}' if instead else ''}."
            )


def _instead(target: Target) -> str:
    """A like target that stores no range of inputs; "" if there is none."""
    dynamic = f"{target.container}/{target.name.replace('-static', '')}"
    return dynamic if dynamic != str(target) else _WITHOUT_INPUTS.get(str(target), "")
