"""What inputs of products are rounded to: `compute_dtype` of the public functions."""

from __future__ import annotations

import torch

from bitsmith.errors import UsageError

AUTO = "auto"
PRECISIONS = ("float32", "bfloat16", "float16", "int8")


def precision_of(compute_dtype: str | torch.dtype | None) -> str:
    """The precision of `operations.matmul`: "auto" for None. Raises UsageError for an unknown dtype."""
    if compute_dtype is None:
        return AUTO
    name = str(compute_dtype).removeprefix("torch.")
    if name not in PRECISIONS:
        raise UsageError(f"compute_dtype={name!r} is unknown; known are {', '.join(PRECISIONS)}.")
    return name
