"""Where arithmetic runs."""

from __future__ import annotations

from bitsmith.errors import UsageError, quoted

CPU, CUDA = "cpu", "cuda"


def choose_device(wanted: str | None) -> str:
    """ "cpu", "cuda" or "cuda:N"; None takes CUDA where torch finds it.

    Raises UsageError for another word, or a device that is not there.
    """
    import torch

    if wanted == CPU:
        return CPU
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted is None:
        return CUDA if count else CPU
    number = wanted.removeprefix("cuda:") if wanted.startswith("cuda:") else "0" if wanted == CUDA else ""
    if not number.isdigit():
        raise UsageError(f"--device={quoted(wanted)}: unknown; expected cpu, cuda, or cuda:N.")
    if int(number) >= count:
        found = f"torch finds {count} CUDA device{'s' if count > 1 else ''}" if count else "torch finds no CUDA device"
        raise UsageError(f"--device={quoted(wanted)}: {found} here; give --device=cpu.")
    return wanted
