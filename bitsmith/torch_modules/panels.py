"""Matrices as the C++ core multiplies them (csrc/run/panels.h), as torch tensors on any device.

A row is a row of blocks, see `runtime.core_grids.grid_rows`: a float32 scale, for integers a float32 offset, codes.
16 rows make a panel: their words, of four bytes, side by side. The last panel is filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bitsmith.runtime.core_grids import TABLES, block_bytes

PANEL_ROWS = 16
_RUN = 32  # columns whose nibbles lie together


@dataclass(frozen=True)
class Layout:
    """Blocks of one grid.

    kind: "int4", "int8", or one of `TABLES`: "nf4", "fp4"
    width: columns of a block
    """

    kind: str
    width: int

    @classmethod
    def named(cls, name: str) -> Layout:
        """The layout of a name of `grid_layout`: "nf4_64"."""
        kind, _, width = name.partition("_")
        return cls(kind, int(width))

    @property
    def name(self) -> str:
        """As the core names it."""
        return f"{self.kind}_{self.width}"

    @property
    def has_offset(self) -> bool:
        """Whether a block has an offset."""
        return self.kind not in TABLES

    @property
    def head(self) -> int:
        """Bytes of a block before its codes."""
        return 8 if self.has_offset else 4

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row."""
        return block_bytes(self.name, cols)

    def panel_bytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix, its last panel filled up."""
        return -(-rows // PANEL_ROWS) * PANEL_ROWS * self.row_bytes(cols)


def known(layout: str | None) -> bool:
    """Whether a layout of `grid_layout` is one of grids; ggml's blocks are not."""
    return layout is not None and layout.partition("_")[0] in ("int4", "int8", *TABLES)


def to_panels(rows: Tensor) -> Tensor:
    """Rows of blocks, uint8 [rows, bytes] -> panels, uint8 [panels * 16 * bytes]."""
    count, size = rows.shape
    filled = -(-count // PANEL_ROWS) * PANEL_ROWS
    if filled != count:
        rows = torch.cat((rows, rows.new_zeros(filled - count, size)))
    words = rows.reshape(filled // PANEL_ROWS, PANEL_ROWS, size // 4, 4)
    return words.transpose(1, 2).reshape(-1)


def to_rows(panels: Tensor, count: int, size: int) -> Tensor:
    """The inverse: uint8 [panels * 16 * size] -> uint8 [count, size]."""
    words = panels.reshape(-1, size // 4, PANEL_ROWS, 4)
    return words.transpose(1, 2).reshape(-1, size)[:count]


def scales(rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Scales, and offsets where there are some, of rows of blocks: float32 [rows, blocks] each."""
    blocks = rows.reshape(rows.shape[0], -1, layout.row_bytes(layout.width))
    scale = blocks[:, :, :4].contiguous().view(torch.float32)[:, :, 0]
    offset = blocks[:, :, 4:8].contiguous().view(torch.float32)[:, :, 0] if layout.has_offset else None
    return scale, offset


def codes(rows: Tensor, layout: Layout) -> Tensor:
    """Codes of rows of blocks as they are stored: uint8 [rows, cols], integers with half of their range added."""
    blocks = rows.reshape(rows.shape[0], -1, layout.row_bytes(layout.width))[:, :, layout.head :]
    if layout.kind == "int8":
        return blocks.reshape(rows.shape[0], -1)
    pairs = blocks.reshape(rows.shape[0], -1, 1, _RUN // 2)
    return torch.cat((pairs & 15, pairs >> 4), dim=2).reshape(rows.shape[0], -1)


def values(panels: Tensor, layout: Layout, count: int, cols: int) -> Tensor:
    """A matrix, decoded: float32 [count, cols]. The same values as `Grid.values`."""
    rows = to_rows(panels, count, layout.row_bytes(cols))
    scale, offset = scales(rows, layout)
    if layout.kind == "int8":
        levels = codes(rows, layout).float().reshape(count, -1, layout.width) - 128.0
        return _shifted(levels * scale[:, :, None], offset).reshape(count, cols)
    stored = rows.reshape(count, -1, layout.row_bytes(layout.width))[:, :, layout.head :]
    shape = count, stored.shape[1], layout.width // _RUN, _RUN // 2
    index = stored.to(torch.int32).reshape(-1)
    out = torch.empty((*shape[:3], 2, shape[3]), device=panels.device)
    for half, levels in enumerate(_half_levels(layout.kind)):  # a byte holds two codes, half of a run apart
        scaled = levels.to(panels.device).index_select(0, index).reshape(shape) * scale[:, :, None, None]
        out[:, :, :, half] = scaled if offset is None else scaled + offset[:, :, None, None]
    return out.reshape(count, cols)


def _shifted(blocks: Tensor, offset: Tensor | None) -> Tensor:
    return blocks if offset is None else blocks + offset[:, :, None]


@lru_cache
def _half_levels(kind: str) -> tuple[Tensor, Tensor]:
    """The levels of the lower and of the upper code of each byte, float32 [256]."""
    levels = levels_of(kind)
    return levels.repeat(16), levels.repeat_interleave(16)


def levels_of(kind: str) -> Tensor:
    """The levels of 4-bit codes as they are stored, float32 [16]."""
    return torch.from_numpy(table_of(kind)) if kind in TABLES else torch.arange(16.0) - 8.0


@lru_cache
def table_of(kind: str) -> np.ndarray:
    """The values of the codes of a kind of `TABLES`: float32 [16]."""
    return np.array(TABLES[kind], np.float32)
