"""Weights stored with a scale of their input: what a calibration must tell a plan, and the plan that was told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from bitsmith.calibration.stats import Stats
from bitsmith.containers.static_input import StaticInput
from bitsmith.errors import TensorError, UnsupportedError, UsageError
from bitsmith.models.arch.names import gguf_name
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.plan import Plan, PlannedTensor, Target


def inputs_wanted(plan: Plan) -> tuple[str, ...]:
    """GGUF names without ".weight" of the linears whose inputs a calibration must have seen."""
    return tuple(_linear(tensor) or tensor.info.name for tensor in plan.tensors if tensor.wants_input)


def with_inputs(plan: Plan, stats: Mapping[str, Stats]) -> Plan:
    """The same plan, its codecs told how large their inputs get; as it is where none wants to know.

    stats: by GGUF name without ".weight", as `bitsmith.calibration.collect.Calibration` has them; `max_abs` counts
    Raises UsageError for a linear that is not among them, TensorError where a scale does not fit its precision.
    """
    return replace(plan, tensors=tuple(_told(tensor, stats) for tensor in plan.tensors))


def check_inputs(target: Target, tensors: Iterable[PlannedTensor], calibration: CalibrationRecord | None) -> None:
    """Raise UsageError where inputs are wanted and nothing will measure them, UnsupportedError where nothing can."""
    wanting = [tensor for tensor in tensors if tensor.wants_input]
    if not wanting:
        return
    dynamic = target.name.replace("-static", "")
    if calibration is None or calibration.seed is None:
        given = "" if calibration is None else f"; {calibration.source} is an importance file, without activations"
        raise UsageError(
            f"{target} stores the range of every layer's input ({wanting[0].info.name} and {len(wanting) - 1} more), "
            f"which has to be measured{given}. Give --calibration default, or a text; or write "
            f"{target.container}/{dynamic}, whose ranges are found as it runs."
        )
    for tensor in wanting:
        if _linear(tensor) is None:
            raise UnsupportedError(
                f"{tensor.info.name}: the calibration does not measure this layer's input; leave it in 16 bits with "
                f"--keep '{re.escape(tensor.info.name)}', or write {target.container}/{dynamic}."
            )


def _told(tensor: PlannedTensor, stats: Mapping[str, Stats]) -> PlannedTensor:
    if not tensor.wants_input:
        return tensor
    assert isinstance(tensor.codec, StaticInput)
    seen = stats.get(_linear(tensor) or "")
    if seen is None:
        raise UsageError(
            f"{tensor.info.name}: the calibration has not seen its input, whose range {tensor.info.layout} stores; "
            "calibrate on this model, with --calibration default or a text."
        )
    try:
        codec = tensor.codec.with_input_absmax(float(seen.max_abs.max(initial=0)))
    except TensorError as error:
        raise TensorError(f"{tensor.info.name}: {error}") from error
    return replace(tensor, codec=codec, inputs=codec.input_rounding)


def _linear(tensor: PlannedTensor) -> str | None:
    name = gguf_name(tensor.info.name)
    return None if name is None else name.removesuffix(".weight")
