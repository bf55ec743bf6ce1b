"""How long a generated token takes on this machine, by the types of its tensors.

For one token the core multiplies one row with every matrix. The seconds of each layout and shape are measured with the
products that run them, on so many copies of a matrix that they come from the memory that a model of this size lies in.
What a token takes beside them, attention above all, is measured on the original. Both are kept in the user's cache
folder, by processor, instruction set, number of threads and version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitsmith.calibration.sensitivity.kept import Kept, model_sha256, program_key
from bitsmith.errors import BitsmithError, UsageError
from bitsmith.evaluation.speed import DEFAULT_GEN, measure_speed
from bitsmith.models.arch.names import in_stack
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.recipe.allocation.search import largest
from bitsmith.recipe.allocation.units import Allocatable, Choice, linear_of
from bitsmith.recipe.plan import PlannedTensor
from bitsmith.runtime.reading import best
from bitsmith.runtime.types import FLOATS, PACKED
from bitsmith.system.core import core, missing
from bitsmith.system.machine import cores
from bitsmith.system.processor import processor_name
from bitsmith.system.progress import Progress, Report, silent

MARGIN = 1.05  # the types that are chosen are expected to be faster by this than was asked for
_REPEAT = 3  # how often what lies beside products is read: the fastest counts, as others may be at work
_TRIES = 2
_WORKING = 64 << 20  # bytes of matrices that are read in turns; more come from memory, too
_EMBEDDING = "token_embd"

Product = tuple[str, int, int]  # layout in the core, rows, cols


@dataclass(frozen=True)
class TokenTime:
    """Seconds of one token.

    units: of each choice of each unit, float64 [choices]; fixed: of all else
    threads: that they were measured with
    """

    units: tuple[np.ndarray, ...]
    fixed: float
    threads: int

    def rate(self, chosen: Sequence[int]) -> float:
        """Tokens a second of chosen types."""
        return 1 / (self.fixed + sum(float(each[at]) for each, at in zip(self.units, chosen, strict=True)))

    def left(self, tokens_per_second: float) -> float:
        """Seconds that units may take so that a token is fast enough, with a margin; below zero: nothing is."""
        return 1 / (MARGIN * tokens_per_second) - self.fixed


def token_time(allocatable: Allocatable, config: QuantizeConfig, report: Report = silent) -> TokenTime:
    """Measure the choices of a model, or read what was measured before.

    Raises UsageError without the core, or if it cannot run the model.
    """
    module = core()
    if module is None:
        raise UsageError(f"--tokens-per-second measures products of the C++ core, and there is none: {missing()}.")
    threads = config.worker_threads or cores()
    kept = Kept(
        {
            "what": "seconds of products",
            "program": program_key(),
            "processor": processor_name(),
            "threads": threads,
        }
    )
    units = [[_products(choice, allocatable.checkpoint) for choice in unit.choices] for unit in allocatable.units]
    wanted = sorted({product for unit in units for choice in unit for product, _ in choice})
    working = min(_WORKING, largest(allocatable.units) // 2)
    pool, seconds = module.Pool(threads), {}
    for at, product in enumerate(wanted):
        report(Progress("speed", at, len(wanted), "products", " ".join(map(str, product))))
        seconds[product] = _seconds(product, module, pool, working, kept)
    times = tuple(
        np.array([sum(seconds[product] * share for product, share in choice) for choice in unit]) for unit in units
    )
    return TokenTime(times, _fixed(allocatable.checkpoint, threads, kept, report), threads)


def _products(choice: Choice, checkpoint: Checkpoint) -> list[tuple[Product, float]]:
    """The products of a token with a unit's tensors, and how many of each; an embedding that is no head has none."""
    config, found = checkpoint.config, []
    for tensor in choice.tensors:
        name = linear_of(tensor)
        if name == _EMBEDDING and not config.tied:
            continue
        share, rows = 1.0, tensor.info.rows
        expert = "_exps" in name or in_stack(f"{name}.weight") is not None
        if expert and config.experts is not None:
            stack = len(tensor.info.shape) > 2
            rows //= config.experts.count if stack else 1
            share = config.experts.used / (1 if stack else config.experts.count)
        found.append(((_layout(tensor), rows, tensor.info.cols), share))
    return found


def _layout(tensor: PlannedTensor) -> str:
    """The core's layout of a tensor: its own, that of its codes, or float32, to which the core decodes others."""
    from bitsmith.runtime.core_grids import grid_layout

    layout = tensor.info.layout
    if layout in (*PACKED, *FLOATS) or tensor.format is None:
        return layout if layout in (*PACKED, *FLOATS) else "f32"
    return grid_layout(tensor.format, tensor.info.cols) or "f32"


def _seconds(product: Product, module: Any, pool: Any, working: int, kept: Kept) -> float:
    """Of one product. working: bytes of the matrices that are read in turns"""
    layout, rows, cols = product
    entry = f"{layout} {rows}x{cols} of 2^{max(working, 1).bit_length()} bytes"
    known = kept.get(entry)
    if isinstance(known, float) and known > 0:
        return known
    random, arena = np.random.default_rng(0), module.Arena()
    made: list[Any] = []
    held = []  # what views look at
    while not made or len(made) * made[0].nbytes < working:
        if layout in FLOATS:
            values = random.normal(0, 0.02, rows * cols).astype(np.float32)
            data = values.view(np.uint8) if layout == "f32" else values.view(np.uint16)[1::2].copy().view(np.uint8)
            held.append(data)
            made.append(module.view_matrix(layout, rows, cols, data))
        else:
            matrix = module.Matrix(layout, rows, cols, arena)
            block = random.integers(0, 60, rows * matrix.row_bytes, dtype=np.uint8)  # scales are small numbers
            matrix.fill(0, rows, block, pool)
            made.append(matrix)
    tries = [tuple(module.reading_rates(made, module.isa(), pool)) for _ in range(_TRIES)]
    found: float = made[0].nbytes / max(rates[best(rates)] for rates in tries)
    kept.put(entry, found)
    return found


def _fixed(checkpoint: Checkpoint, threads: int, kept: Kept, report: Report) -> float:
    """Seconds of one token of the original, without its products: the mean over as many tokens as `bench` generates."""
    from bitsmith.runtime.load import choose_kernel, load_language_model

    tokens = min(DEFAULT_GEN, checkpoint.config.context)
    entry = f"beside products: {model_sha256(checkpoint)}"
    known = kept.get(entry)
    if isinstance(known, float) and known >= 0:
        return known
    try:
        kernel = choose_kernel(checkpoint, "int16", default="int16")
        model = load_language_model(checkpoint, kernel=kernel, threads=threads, report=report)
    except BitsmithError as error:
        raise UsageError(
            f"--tokens-per-second measures the C++ core, which cannot run the model: {error.message}"
        ) from error
    beside = []
    for _ in range(_REPEAT):
        rate = measure_speed(model, prompt=0, gen=tokens, repeat=1, report=report)[1]
        assert rate is not None
        beside.append(sum(rate.seconds) - rate.parts.get("products", 0.0))
    found = max(0.0, min(beside) / tokens)
    kept.put(entry, found)
    return found
