"""Loading a checkpoint for running, on the kernel that suits it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bitsmith.errors import UnsupportedError, UsageError, quoted
from bitsmith.runtime.kernels import FALLBACK, KERNELS, LoadOptions
from bitsmith.runtime.types import CACHES
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.models.checkpoint import Checkpoint
    from bitsmith.runtime.language_model import LanguageModel

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
_LOG = logging.getLogger(__name__)
_CHOICE = logging.getLogger(f"{__name__}.choice")  # the command line shows it, see `cli.notices`


@dataclass(frozen=True)
class Compute:
    """Type and device of products; see `LoadOptions`."""

    dtype: str = ""
    device: str = "cpu"


def computing(
    dtype: str | None, device: str | None, kernel: str | None, default: str
) -> tuple[Compute, str | None, str]:
    """How products are computed, and the wanted and the default kernel for it.

    dtype: "float32", "bfloat16", "float16"; None: what the kernel does
    device: None is the CPU
    Raises UsageError for an unknown type or device, or a kernel that cannot do it.
    """
    if dtype not in (None, *COMPUTE_DTYPES):
        raise UsageError(f"--compute-dtype={quoted(dtype)}: unknown; expected {', '.join(COMPUTE_DTYPES)}.")
    if device not in (None, "cpu"):
        from bitsmith.runtime.torch.device import choose_device

        device = choose_device(device)
    found = Compute(dtype or "", device or "cpu")
    if found.device == "cpu" and dtype is None:
        return found, kernel, default
    able = ("exact", FALLBACK) if found.device == "cpu" and dtype == "float32" else (FALLBACK,)
    if kernel not in (None, *able):
        asked = f"--compute-dtype={dtype}" if dtype else f"--device={device}"
        raise UsageError(f"{asked} is for --kernel={' and '.join(able)}, not {quoted(kernel)}; leave out --kernel.")
    return (found, kernel, able[0]) if len(able) > 1 else (found, FALLBACK, FALLBACK)


def load_language_model(
    checkpoint: Checkpoint,
    *,
    kernel: str,
    threads: int | None = None,
    cache_type: str = "f16",
    compute: Compute = Compute(),
    report: Report = silent,
) -> LanguageModel:
    """Load a checkpoint for running.

    kernel: a name of `KERNELS`, see `choose_kernel`
    threads, cache_type: see `LoadOptions`; kernels that keep float32 do not look at cache_type
    compute: only torch looks at it; see `computing`
    Raises FileError where the tensors are not those its configuration promises, UnsupportedError for an unknown
    architecture, or what the kernel cannot run. What the user should know about the model goes to the log.
    """
    for note in checkpoint.notes:
        _LOG.warning("%s: %s", checkpoint.name, note)
    _LOG.info("loading %s with kernel %s", checkpoint.source.path, kernel)
    return KERNELS[kernel].load(checkpoint, LoadOptions(threads, cache_type, report, compute.dtype, compute.device))


def choose_kernel(checkpoint: Checkpoint, wanted: str | None, *, default: str) -> str:
    """The kernel for a checkpoint: the wanted one, else the default where it can run it, else torch.

    Raises UsageError where the kernel is not there, UnsupportedError where it cannot run the checkpoint.
    """
    if wanted not in (None, *KERNELS):
        raise UsageError(f"--kernel={quoted(wanted)}: unknown; expected {', '.join(KERNELS)}.")
    row, fallback = KERNELS[wanted or default], KERNELS[FALLBACK]
    absent = row.missing()
    if absent is not None and row is fallback:
        raise UsageError(absent)
    if absent is not None and wanted:
        raise UsageError(f"--kernel={quoted(wanted)}: {absent}; {row.advice()}")
    if absent is not None:
        if fallback.missing() is not None:
            raise UsageError(f"{absent}, so {fallback.missing()}")
        return fallback.name
    obstacle = row.obstacle(checkpoint)
    if obstacle is None:
        return row.name
    if wanted:
        raise UnsupportedError(f"--kernel={quoted(wanted)}: {obstacle}; give --kernel={FALLBACK}.")
    if fallback.missing() is not None:
        raise UnsupportedError(f"{checkpoint.source.path}: {obstacle}; torch can: pip install 'bitsmith[torch]'.")
    _CHOICE.warning("%s: %s; it is computed with torch, which is slower", checkpoint.name, obstacle)
    return fallback.name


def with_context(checkpoint: Checkpoint, context: int) -> Checkpoint:
    """The checkpoint with a shorter context, so that its caches take less memory.

    Raises UsageError for fewer than 1 token, or more than the model was trained for.
    """
    longest = checkpoint.config.context
    if not 1 <= context <= longest:
        raise UsageError(f"--context={context}: {checkpoint.name} was trained for 1 to {longest} tokens; give no more.")
    return replace(checkpoint, shape=replace(checkpoint.config, context=context))


def check_cache(cache_type: str, kernel: str) -> None:
    """Raise UsageError for a type of keys and values that is not known, or that this kernel does not keep."""
    if cache_type not in CACHES:
        raise UsageError(f"--cache={quoted(cache_type)}: unknown; expected {', '.join(CACHES)}.")
    if cache_type in KERNELS[kernel].cache_types or cache_type in ("f16", "f32"):  # f16 is what nobody chose
        return
    able = ", ".join(name for name, row in KERNELS.items() if cache_type in row.cache_types)
    raise UsageError(
        f"--cache={cache_type}: --kernel={kernel} always keeps keys and values in float32; use --kernel={able}."
    )
