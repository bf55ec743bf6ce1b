"""Warnings about tensors that lose far more than their type usually does, from the errors in the manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bitsmith.containers import module_containers
from bitsmith.containers.manifest import TensorRecord
from bitsmith.errors import quoted
from bitsmith.recipe.plan import Plan, PlannedTensor

# Largest usual relative squared error by bits a code: 16 * 4^-bits, and 1 % for eight bits and floats, is about eight
# times what nearest codes of Gaussian weights lose. Two bits lose up to 0.6.
_LEAST, _MOST = 0.01, 0.8
_NAMED = 8  # number of tensors that are named; the rest are counted


def loss_bound(tensor: PlannedTensor) -> float:
    """The relative squared error beyond which a tensor is warned of."""
    bits = 16 if tensor.format is None else tensor.format.bits
    return min(_MOST, max(_LEAST, 16.0 * 4.0**-bits))


def loss_warnings(plan: Plan, records: Sequence[TensorRecord]) -> tuple[str, ...]:
    """One warning for each tensor beyond its bound, the worst first; a last one counts the tensors not named."""
    tensors = {tensor.info.name: tensor for tensor in plan.tensors}
    beyond = [record for record in records if record.error > loss_bound(tensors[record.name])]
    beyond.sort(key=lambda record: -record.error)
    told = [_warning(plan, tensors[record.name], record.error) for record in beyond[:_NAMED]]
    if len(beyond) > _NAMED:
        told.append(f"{len(beyond) - _NAMED} more tensors lose far more than usual; the manifest has all errors")
    return tuple(told)


def _warning(plan: Plan, tensor: PlannedTensor, error: float) -> str:
    name, layout = tensor.info.name, tensor.info.layout
    grouped = plan.target.container in module_containers()
    pattern = re.escape(name)
    keep, rule = quoted(f"^{pattern}$"), quoted(f"^{pattern}$=bf16")
    advice = f"keep it in 16 bits with --keep={keep}" if grouped else f"give --rule={rule}, or f32"
    if error == 1.0:
        return f"{name} becomes all zeros: its weights are too small for {layout}. If the model needs it, {advice}"
    return f"{name} loses {error:.0%} of its weights' squares in {layout}, far more than usual; to keep them, {advice}"
