"""The linear that keeps codes and computes in a type of its own: each product decodes slabs of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsmith.quant.bits import pack
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.vector_grid import VectorGrid
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.dense import DTYPES, DenseKernel, slabs


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix [rows, cols] as codes.

    codes: uint8 [rows, cols], or [rows, cols / 2] with two codes a byte, the first in the lower half
    table: float32 [levels]; scale, offset: float32 [rows, blocks]; offset is None if the format has none
    """

    codes: Tensor
    table: Tensor
    scale: Tensor
    offset: Tensor | None
    cols: int

    def values(self, start: int, stop: int) -> Tensor:
        """Rows start..stop, float32."""
        codes = self.codes[start:stop]
        if codes.shape[1] != self.cols:
            codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
        levels = self.table[codes.int()].reshape(len(codes), self.scale.shape[1], -1)
        blocks: Tensor = levels * self.scale[start:stop, :, None]
        if self.offset is not None:
            blocks = blocks + self.offset[start:stop, :, None]
        return blocks.flatten(1)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        offset = 0 if self.offset is None else self.offset.nbytes
        return self.codes.nbytes + self.table.nbytes + self.scale.nbytes + offset


@dataclass(frozen=True)
class StoredKernel:
    """Codes as they are stored; weights without codes are dense in `dtype`.

    dtype: "float32", "bfloat16" or "float16". Both factors of a product are rounded to it. A CPU sums the products in
    float32; CUDA does too, and rounds the sums to `dtype`.
    """

    dtype: str = "float32"
    device: str = "cpu"

    def supports(self, layout: str, device: str) -> bool:
        """Everything that can be decoded, on every torch device."""
        return True

    def prepare(self, weight: Weight) -> StoredMatrix | Tensor:
        """Codes, scales and table on the device, read slab by slab."""
        rows, cols = weight.info.rows, weight.info.cols
        found = []
        for start, stop in slabs(rows, cols):
            tensor = weight.codes(start, stop)
            if tensor is None:
                return DenseKernel(self.dtype, self.device).prepare(weight)
            grid = tensor.format.grid(tensor.params)
            if isinstance(grid, VectorGrid):
                return DenseKernel(self.dtype, self.device).prepare(weight)
            codes = as_numpy(tensor.codes)
            packed = pack(codes, 4) if len(grid.table) <= 16 and cols % 2 == 0 else codes
            found.append((packed, as_numpy(grid.table), as_numpy(grid.scale), grid.offset))

        def on_device(values: list[np.ndarray]) -> Tensor:
            return torch.tensor(np.concatenate(values), device=self.device)

        codes, tables, scales, offsets = zip(*found, strict=True)
        offset = None if offsets[0] is None else on_device([as_numpy(each) for each in offsets])
        return StoredMatrix(on_device(list(codes)), on_device([tables[0]]), on_device(list(scales)), offset, cols)

    def linear(self, x: Tensor, prepared: StoredMatrix | Tensor) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]."""
        dtype = DTYPES[self.dtype]
        rows = len(prepared) if isinstance(prepared, Tensor) else len(prepared.codes)
        cols = x.shape[-1]
        x = x.to(dtype)
        out = torch.empty((*x.shape[:-1], rows), dtype=torch.float32, device=x.device)
        for start, stop in slabs(rows, cols):
            w = prepared[start:stop] if isinstance(prepared, Tensor) else prepared.values(start, stop).to(dtype)
            if x.device.type == "cpu":
                out[..., start:stop] = x.float() @ w.float().T
            else:
                out[..., start:stop] = x @ w.T
        return out

    def gather(self, prepared: StoredMatrix | Tensor, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., cols]."""
        if isinstance(prepared, Tensor):
            return prepared[ids].float()
        unique, places = torch.unique(ids, return_inverse=True)
        rows = torch.cat([prepared.values(row, row + 1) for row in unique.tolist()])
        return rows.to(DTYPES[self.dtype]).float()[places]

    def nbytes(self, prepared: StoredMatrix | Tensor) -> int:
        """Bytes of codes and scales, or of the dense matrix."""
        return prepared.nbytes
