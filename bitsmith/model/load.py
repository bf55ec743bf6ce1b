"""Loading a checkpoint for running, on whatever suits it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bitsmith.arch.names import hf_name
from bitsmith.arch.tensors import expected_tensors
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.machine import cores
from bitsmith.model.language_model import LanguageModel
from bitsmith.model.memory import available_memory
from bitsmith.model.weights import weight_reader
from bitsmith.native import core, cure, missing
from bitsmith.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.checkpoint import Checkpoint
    from bitsmith.containers.base import Source
    from bitsmith.tensor import TensorInfo

NATIVE, EXACT, TORCH = "native", "exact", "torch"
KERNELS = (NATIVE, EXACT, TORCH)


def load_language_model(
    checkpoint: Checkpoint,
    *,
    kernel: str,
    threads: int | None = None,
    cache_type: str = "f16",
    report: Report = silent,
) -> LanguageModel:
    """Load a checkpoint for running on the CPU.

    kernel: "native", the C++ core with inputs rounded to int8 in blocks of 32; "exact", the core with float32 inputs;
        "torch", the reference. See `choose_kernel`.
    threads: for arithmetic; None takes one a core (torch: its own choice)
    cache_type: of keys and values: "f16", "q8_0" or "f32"; torch's are always f32, and so are those of "exact"
    Raises FileError where the tensors are not those its configuration promises, UnsupportedError for an unknown
    architecture, or what the kernel cannot run.
    """
    if kernel == TORCH:
        from bitsmith.model.torch_model import load_torch_model

        return load_torch_model(checkpoint, threads=threads, report=report)
    from bitsmith.model.native import load_native

    config, read = checkpoint.config, weight_reader(checkpoint)
    with ThreadPoolExecutor(1) as beside:
        tokenizer = beside.submit(checkpoint.tokenizer)
        decoder = load_native(
            config,
            read,
            threads=threads or cores(),
            exact=kernel == EXACT,
            cache_type="f32" if kernel == EXACT else cache_type,
            report=report,
        )
        return LanguageModel(checkpoint.name, decoder, tokenizer.result())


def choose_kernel(checkpoint: Checkpoint, wanted: str | None, *, default: str) -> str:
    """The kernel for a checkpoint: the wanted one, else the default where the core can run it, else torch.

    Raises UsageError where the wanted one is not there, UnsupportedError where it cannot run the checkpoint.
    """
    if wanted not in (None, *KERNELS):
        raise UsageError(f"--kernel {wanted}: unknown; expected {', '.join(KERNELS)}.")
    torch_found = find_spec("torch") is not None
    if wanted == TORCH or (wanted is None and core() is None):
        if torch_found:
            return TORCH
        why = "" if wanted else f"{missing()}, so "
        raise UsageError(f"{why}running a model needs torch: pip install 'bitsmith[torch]'.")
    if core() is None:
        raise UsageError(f"--kernel {wanted}: {missing()}; {cure()}")
    obstacle = _obstacle(checkpoint)
    if obstacle is None:
        return wanted or default
    if wanted:
        raise UnsupportedError(f"--kernel {wanted}: {obstacle}; give --kernel torch.")
    if not torch_found:
        raise UnsupportedError(f"{checkpoint.source.path}: {obstacle}; torch can: pip install 'bitsmith[torch]'.")
    return TORCH


def check_cache(cache_type: str, kernel: str) -> None:
    """Raise UsageError for a type of caches that is not known, and for one that this kernel does not heed."""
    from bitsmith.model.native import CACHES

    if cache_type not in CACHES:
        raise UsageError(f"--cache {cache_type}: unknown; expected {', '.join(CACHES)}.")
    if kernel != NATIVE and cache_type not in ("f16", "f32"):
        raise UsageError(f"--cache {cache_type}: --kernel {kernel} keeps float32; only the native kernel has a choice.")


def _packs(source: Source, info: TensorInfo) -> bool:
    from bitsmith.model.grids import grid_layout

    codes = source.codes(info.name, 0, 0)
    return codes is not None and grid_layout(codes.format, info.cols) is not None


def _obstacle(checkpoint: Checkpoint) -> str | None:
    """What keeps the core from running a checkpoint; None: nothing.

    Matrices that it cannot multiply as they are stored are decoded to float32, as long as they fit half of the memory.
    """
    from bitsmith.model.native import FLOATS, PACKED

    config, source = checkpoint.config, checkpoint.source
    decoded = 0
    if config.activation != "silu":
        return f"the C++ core does not know the activation {config.activation}"
    for name in expected_tensors(config):
        own = name if checkpoint.naming == "gguf" else hf_name(name)
        info = None if own is None else source.tensors.get(own)
        if own is None or info is None:
            continue  # `check_tensors` will say so
        if len(info.shape) > 1 and info.layout not in PACKED + FLOATS and not _packs(source, info):
            decoded += 4 * info.parameters
            room = available_memory()
            if room is not None and decoded > room // 2:
                what = f"the C++ core has no products with {info.layout} ({own})"
                return f"{what}, and decoded to float32 the model takes too much memory"
        if len(info.shape) > 1 and source.activations(own) is not None:
            return f"the C++ core does not round inputs as {own} asks for ({source.activations(own)})"
    return None
