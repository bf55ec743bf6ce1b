"""The reference linear: every matrix decoded once into a dense torch tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.errors import UsageError
from bitsmith.runtime.kernel import Weight

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SLAB_WEIGHTS = 4 << 20  # weights decoded at a time: 16 MB of float32


def slabs(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of pieces of whole rows with at most SLAB_WEIGHTS weights, but one row at least."""
    step = max(1, SLAB_WEIGHTS // max(cols, 1))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


@dataclass(frozen=True)
class DenseKernel:
    """Matrices as dense tensors of `dtype` ("float32", "bfloat16", "float16"); products return float32."""

    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r} is unknown; known are {', '.join(DTYPES)}.")

    def supports(self, layout: str, device: str) -> bool:
        """Everything that can be decoded, on every torch device."""
        return True

    def prepare(self, weight: Weight) -> Tensor:
        """[rows, cols] of `dtype`; decoding needs one slab of float32 beside it."""
        rows, cols = weight.info.rows, weight.info.cols
        dense = torch.empty((rows, cols), dtype=DTYPES[self.dtype], device=self.device)
        for start, stop in slabs(rows, cols):
            dense[start:stop] = torch.as_tensor(weight.rows(start, stop))
        return dense

    def linear(self, x: Tensor, prepared: Tensor) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]; x is rounded to `dtype` first."""
        return functional.linear(x.to(prepared.dtype), prepared).float()

    def gather(self, prepared: Tensor, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., cols]."""
        return prepared[ids].float()

    def nbytes(self, prepared: Tensor) -> int:
        """Bytes of the dense matrix."""
        return prepared.nbytes
