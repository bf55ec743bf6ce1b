"""The expected time of a plan, from the speed of each format on a small random sample on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bitsmith.calibration.cost import LONG_SECONDS
from bitsmith.containers.gguf.core_blocks import encode_stored
from bitsmith.containers.static_input import StaticInput
from bitsmith.errors import Words
from bitsmith.pipeline.chunks import CHUNK_WEIGHTS
from bitsmith.pipeline.encode import encode_rows
from bitsmith.pipeline.result import Quantized
from bitsmith.quant.formats.base import NeedsExtent
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.system.sizes import human_seconds

_SAMPLE_WEIGHTS = 1 << 16
_DISK_BYTES_PER_SECOND = 400e6  # writing, flushing, reading back and hashing, together; a guess
_OVERHEAD = 1.15  # reading the source, waiting for the last thread
_FIXED_SECONDS = 0.3  # creating, flushing and renaming files


def expected_seconds(plan: Plan, threads: int, *, importance: bool = False) -> float:
    """Expected time of executing `plan`, in seconds; right within a factor of about 1.5.

    importance: whether columns are weighted; the calibration pass itself is not included
    """
    per_weight: dict[str, float] = {}
    total = 0.0
    for planned in plan.tensors:
        if planned.constant is not None or planned.verbatim:
            continue
        layout = planned.info.layout
        if layout not in per_weight:
            per_weight[layout] = seconds_per_weight(planned, importance=importance)
        total += per_weight[layout] * planned.info.parameters
    return _FIXED_SECONDS + _OVERHEAD * total / threads + plan.size / _DISK_BYTES_PER_SECOND


def with_long_note(expected: list[Quantized]) -> list[Quantized]:
    """The same plans; if all together take long, the first has a note with the time and a cheaper choice."""
    total = sum(each.expected_seconds for each in expected)
    if total <= LONG_SECONDS:
        return expected
    note = f"this takes about {human_seconds(total)}"
    if any(each.fast_seconds is not None for each in expected):
        fast = sum(each.expected_seconds if each.fast_seconds is None else each.fast_seconds for each in expected)
        note += f"; with --effort=fast it takes about {human_seconds(fast)} and loses more"
    return [replace(expected[0], notes=(*expected[0].notes, Words(note))), *expected[1:]]


def seconds_per_weight(
    planned: PlannedTensor, *, importance: bool, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds a weight of rounding a tensor like this one, by one thread of this machine. clock: in seconds"""
    cols = planned.info.cols
    rows = min(max(1, _SAMPLE_WEIGHTS // cols), max(1, CHUNK_WEIGHTS // cols))
    w = np.random.default_rng(0).standard_normal((rows, cols), dtype=np.float32)
    if isinstance(planned.format, NeedsExtent):
        planned = replace(planned, format=planned.format.with_extent(float(w.min()), float(w.max())))
    if isinstance(planned.codec, StaticInput):
        planned = replace(planned, codec=planned.codec.with_input_absmax(1.0))
    columns = np.linspace(0.5, 1.5, cols, dtype=np.float32) if importance else None
    _encode(planned, w[:1], columns)  # the first call imports modules and builds tables, which are not measured
    started = clock()
    _encode(planned, w, columns)
    return (clock() - started) / w.size


def _encode(planned: PlannedTensor, w: np.ndarray, columns: np.ndarray | None) -> None:
    if encode_stored(planned.codec, "f32", w.view(np.uint8), importance=columns) is None:
        encode_rows(planned, w, columns)
