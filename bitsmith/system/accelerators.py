"""Whether Triton's kernels can run on a device."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@cache
def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device: CUDA, or the CPU under its interpreter."""
    return (device.type == "cuda" or (device.type == "cpu" and interpreted())) and _found()


@cache
def _found() -> bool:
    return find_spec("triton") is not None
