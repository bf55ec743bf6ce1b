"""Chooses, for this processor, how the core takes products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitsmith.runtime.reading import FLOATS, PACKED, choose_readings
from bitsmith.system.core_choices import CoreChoices

# How products of several rows of int8 are taken.
_PROMPTS = {
    "amx": "bfloat16 on AMX tiles",
    "avx512bf16": "int8 with VNNI in vectors of 512 bits; bfloat16 where weights are floats",
    "avx512vnni": "int8 with VNNI in vectors of 512 bits",
    "avx512": "int8 in vectors of 512 bits",
    "avxvnni": "int8 with VNNI in vectors of 256 bits",
    "avx2": "int8 in vectors of 256 bits",
    "dotprod": "int8 with ARM's dot products",
    "generic": "int8 without instructions of its own",
}


def choose(
    core: Any,
    model: Any,
    matrices: Mapping[tuple[str, str], Sequence[Any]],
    isa: str,
    pool: Any,
    *,
    exact: bool,
    fine: bool,
) -> CoreChoices:
    """Choose how the core's `model` reads its matrices, and tell it.

    matrices: see `choose_readings`; exact products of packed matrices have one way, and are not measured
    exact, fine: see `load_core`
    """
    measured = {(kind, layout): found for (kind, layout), found in matrices.items() if kind == FLOATS or not exact}
    readings = choose_readings(measured, core=core, isa=isa, pool=pool)
    numbers = {choice.kind: choice.chosen for choice in readings}
    model.set_reading(numbers.get(PACKED, 0), numbers.get(FLOATS, 0))
    prompts = _PROMPTS[isa] + (", and what rounding the inputs lost" if fine else "")
    return CoreChoices(isa, tuple(core.isas()), "float32" if exact else prompts, tuple(readings), tuple(core.readings))
