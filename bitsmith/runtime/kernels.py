"""Kernels by name: one visible table. A kernel is what computes a model.

A new kernel is one file with a function that loads a checkpoint, and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bitsmith.models.arch.tensors import file_tensors
from bitsmith.runtime.core_network import core_lacks, rounds
from bitsmith.runtime.types import CACHES, FLOATS, PACKED
from bitsmith.system.core import core, install_hint, missing
from bitsmith.system.machine import cores
from bitsmith.system.memory import available_memory
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.containers.base import Source
    from bitsmith.models.checkpoint import Checkpoint
    from bitsmith.quant.tensor import TensorInfo
    from bitsmith.runtime.language_model import LanguageModel


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    threads: for arithmetic; None takes one a core (torch: its own choice)
    cache_type: of keys and values: "f16", "q8_0" or "f32"
    compute_dtype: of torch's products with stored codes: "float32", "bfloat16" or "float16"; "" decodes matrices once
    device: of torch
    """

    threads: int | None = None
    cache_type: str = "f16"
    report: Report = silent
    compute_dtype: str = ""
    device: str = "cpu"


@dataclass(frozen=True)
class KernelRow:
    """One row.

    name: as in --kernel
    load: makes a checkpoint ready to run
    missing: why this installation does not have the kernel; None where it has
    advice: what the user does to have it
    obstacle: why the kernel cannot run a checkpoint; None where it can
    cache_types: of keys and values that may be asked for, the usual one first; a single one is always taken
    """

    name: str
    load: Callable[[Checkpoint, LoadOptions], LanguageModel]
    missing: Callable[[], str | None] = lambda: None
    advice: Callable[[], str] = lambda: ""
    obstacle: Callable[[Checkpoint], str | None] = lambda checkpoint: None
    cache_types: tuple[str, ...] = ("f32",)


def _load_int8(checkpoint: Checkpoint, options: LoadOptions) -> LanguageModel:
    return _load_core(checkpoint, options, exact=False)


def _load_int16(checkpoint: Checkpoint, options: LoadOptions) -> LanguageModel:
    return _load_core(checkpoint, options, exact=False, fine=True)


def _load_exact(checkpoint: Checkpoint, options: LoadOptions) -> LanguageModel:
    return _load_core(checkpoint, options, exact=True)


def _load_core(checkpoint: Checkpoint, options: LoadOptions, *, exact: bool, fine: bool = False) -> LanguageModel:
    """The model on the C++ core.

    exact: inputs of products stay float32, and so do keys and values
    fine: inputs of prompts are rounded to 15 bits, as all others are
    """
    from bitsmith.runtime.core_loader import load_core
    from bitsmith.runtime.expert_memory import expert_memory
    from bitsmith.runtime.language_model import LanguageModel
    from bitsmith.runtime.weights import weight_reader

    if checkpoint.config.delta is not None and checkpoint.config.delta.fused:
        checkpoint = checkpoint.laid_out("gguf")  # with q, k and v apart from z
    with ThreadPoolExecutor(1) as beside:
        tokenizer = beside.submit(checkpoint.tokenizer)
        decoder = load_core(
            checkpoint.config,
            weight_reader(checkpoint),
            threads=options.threads or cores(),
            exact=exact,
            fine=fine,
            cache_type="f32" if exact else options.cache_type,
            expert_memory=expert_memory(checkpoint),
            report=options.report,
        )
        return LanguageModel(checkpoint.name, decoder, tokenizer.result())


def _load_torch(checkpoint: Checkpoint, options: LoadOptions) -> LanguageModel:
    from bitsmith.runtime.torch.model import load_torch_model

    return load_torch_model(
        checkpoint,
        threads=options.threads,
        compute_dtype=options.compute_dtype or ("float32" if checkpoint.overrides.format else ""),
        device=options.device,
        report=options.report,
    )


def _no_core() -> str | None:
    return missing() if core() is None else None


def _no_torch() -> str | None:
    found = find_spec("torch") is not None
    return None if found else "running a model needs torch: pip install 'bitsmith[torch]'."


def _packs(source: Source, info: TensorInfo) -> bool:
    from bitsmith.runtime.core_grids import grid_layout

    codes = source.codes(info.name, 0, 0)
    return codes is not None and grid_layout(codes.format, info.cols) is not None


def _core_obstacle(checkpoint: Checkpoint) -> str | None:
    """What keeps the core from running a checkpoint; None: nothing.

    Matrices that it cannot multiply as they are stored are decoded to float32, as long as they fit half of the memory.
    """
    config, source = checkpoint.config, checkpoint.source
    decoded = 0
    unknown = core_lacks(config)
    if unknown is not None:
        return f"the C++ core does not know {unknown}"
    unrounded = _rounding_obstacle(checkpoint)
    if unrounded is not None:
        return unrounded
    if checkpoint.overrides.format:
        return _format_obstacle(checkpoint.overrides.format, config.hidden)
    for own in file_tensors(config, source.tensors, checkpoint.naming).wanted:
        info = source.tensors.get(own)
        if info is None:
            continue  # `check_tensors` will say so
        if len(info.shape) > 1 and info.layout not in PACKED + FLOATS and not _packs(source, info):
            decoded += 4 * info.parameters
            room = available_memory()
            if room is not None and decoded > room // 2:
                what = f"the C++ core has no products with {info.layout} ({own})"
                return f"{what}, and decoded to float32 the model takes too much memory"
    return None


def _rounding_obstacle(checkpoint: Checkpoint) -> str | None:
    """What keeps the core from rounding inputs as the user or the file wants it; None: nothing.

    The core knows LLM.int8(), with one threshold, for all matrices but the output head.
    """
    overrides, source = checkpoint.overrides, checkpoint.source
    if overrides.inputs and not rounds(overrides.input_rounding):
        return f"the C++ core does not round inputs as asked for ({overrides.input_rounding})"
    head = "token_embd.weight" if checkpoint.config.tied else "output.weight"
    thresholds: dict[float, str] = {}
    files = file_tensors(checkpoint.config, source.tensors, checkpoint.naming)
    names = {own: name for name, own in files.places.items()}
    for own in files.wanted:
        info, name = source.tensors.get(own), names.get(own)  # pieces of other tensors have no name of their own
        if info is None or len(info.shape) < 2:  # what is missing `check_tensors` will say
            continue
        asked = overrides.inputs and (name is None or overrides.concern(name))
        rounding = overrides.input_rounding if asked else source.input_rounding(own)
        if rounding is None:
            continue
        if name == head or not rounds(rounding):
            return f"the C++ core does not round inputs as {own} asks for ({rounding})"
        thresholds[rounding.threshold] = own
    if len(thresholds) > 1:
        return f"the C++ core knows one threshold a model, and {' and '.join(thresholds.values())} have different ones"
    return None


def _format_obstacle(name: str, cols: int) -> str | None:
    """What keeps the core from products with a format that matrices get while they are read; None: nothing."""
    from bitsmith.quant.formats import resolve
    from bitsmith.runtime.core_grids import grid_layout

    return None if grid_layout(resolve(name, cols), cols) else f"the C++ core has no products with {name}"


FALLBACK = "torch"  # runs every checkpoint
KERNELS: dict[str, KernelRow] = {
    row.name: row
    for row in (
        KernelRow("int8", _load_int8, _no_core, install_hint, _core_obstacle, CACHES),
        KernelRow("int16", _load_int16, _no_core, install_hint, _core_obstacle, CACHES),
        KernelRow("exact", _load_exact, _no_core, install_hint, _core_obstacle),
        KernelRow("torch", _load_torch, _no_torch),
    )
}
