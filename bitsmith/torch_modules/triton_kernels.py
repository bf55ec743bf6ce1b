"""Products with panels on CUDA, in Triton: one row near the memory's bandwidth, many rows on tensor cores.

A panel is [blocks, words, 16 rows] of 32 bits, see `panels`. Both kernels take words as they lie: a tile of them is a
run of memory, and byte i of word w holds columns that are computed from w and i. Columns are summed in that order, and
inputs are read to match, so that nothing is transposed.

TRITON_INTERPRET=1 runs them on a CPU, slowly: tests do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitsmith.torch_modules.panels import PANEL_ROWS, Layout, table_of

_CODES = {"int4": 0, "int8": 1}
_TABLE = 2
_INT4: tl.constexpr = tl.constexpr(0)
_INT8: tl.constexpr = tl.constexpr(1)


@triton.jit  # type: ignore[untyped-decorator]
def _level(codes, table, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """What codes mean before their scale."""
    if KIND == _INT4:
        return codes.to(tl.float32) - 8.0
    if KIND == _INT8:
        return codes.to(tl.float32) - 128.0
    return tl.load(table + codes)


@triton.jit  # type: ignore[untyped-decorator]
def _part(words, scale, offset, table, SHIFT: tl.constexpr, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """The weights of one code of each word."""
    mask = 255 if KIND == _INT8 else 15
    value = _level((words >> SHIFT) & mask, table, KIND) * scale
    return value + offset


@triton.jit  # type: ignore[untyped-decorator]
def _one_row(  # type: ignore[no-untyped-def]
    x,
    words_of,
    table,
    y,
    rows,
    blocks,
    KIND: tl.constexpr,
    HEAD: tl.constexpr,
    CODE_WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """y[split, 16 panel + r] = the sum over every SPLITth tile of blocks; a tile is TILE words of codes."""
    panel, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row = tl.arange(0, 16)
    at = tl.arange(0, TILE)
    total_words = blocks * CODE_WORDS
    total = tl.zeros([16], tl.float32)
    for start in range(split * TILE, total_words, splits * TILE):
        word = start + at
        inside = word < total_words
        block, own = word // CODE_WORDS, word % CODE_WORDS
        head = (panel * blocks + block) * (CODE_WORDS + HEAD)
        first = head[:, None] * 16 + row[None, :]
        codes = tl.load(words_of + first + (own[:, None] + HEAD) * 16, mask=inside[:, None], other=0)
        scale = tl.load(words_of + first, mask=inside[:, None], other=0).to(tl.float32, bitcast=True)
        offset = tl.zeros_like(scale)
        if HEAD == 2:
            offset = tl.load(words_of + first + 16, mask=inside[:, None], other=0).to(tl.float32, bitcast=True)
        column = block * WIDTH + own * 4
        if KIND != _INT8:
            column = block * WIDTH + (own // 4) * 32 + (own % 4) * 4
        for i in tl.static_range(4):
            low = tl.load(x + column + i, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(_part(codes, scale, offset, table, 8 * i, KIND) * low[:, None], axis=0)
            if KIND != _INT8:
                high = tl.load(x + column + 16 + i, mask=inside, other=0.0).to(tl.float32)
                total += tl.sum(_part(codes, scale, offset, table, 8 * i + 4, KIND) * high[:, None], axis=0)
    place = panel * 16 + row
    tl.store(y + split * rows + place, total, mask=place < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _many_rows(  # type: ignore[no-untyped-def]
    x,
    words_of,
    table,
    y,
    count,
    rows,
    blocks,
    KIND: tl.constexpr,
    HEAD: tl.constexpr,
    CODE_WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """y[INPUTS rows, OUTPUTS columns], weights decoded to the inputs' type for tensor cores, sums in float32."""
    m = tl.program_id(0) * INPUTS + tl.arange(0, INPUTS)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    panel, row = n // 16, n % 16
    at = tl.arange(0, TILE)
    total_words = blocks * CODE_WORDS
    cols = blocks * WIDTH
    total = tl.zeros([INPUTS, OUTPUTS], tl.float32)
    for start in range(0, total_words, TILE):
        word = start + at
        inside = word < total_words
        seen = inside[:, None] & (n < rows)[None, :]
        block, own = word // CODE_WORDS, word % CODE_WORDS
        head = (panel[None, :] * blocks + block[:, None]) * (CODE_WORDS + HEAD)
        first = head * 16 + row[None, :]
        codes = tl.load(words_of + first + (own[:, None] + HEAD) * 16, mask=seen, other=0)
        scale = tl.load(words_of + first, mask=seen, other=0).to(tl.float32, bitcast=True)
        offset = tl.zeros_like(scale)
        if HEAD == 2:
            offset = tl.load(words_of + first + 16, mask=seen, other=0).to(tl.float32, bitcast=True)
        column = block * WIDTH + own * 4
        if KIND != _INT8:
            column = block * WIDTH + (own // 4) * 32 + (own % 4) * 4
        inputs = x + m[:, None] * cols + column[None, :]
        given = (m < count)[:, None] & inside[None, :]
        for i in tl.static_range(4):
            low = tl.load(inputs + i, mask=given, other=0.0)
            weights = _part(codes, scale, offset, table, 8 * i, KIND).to(low.dtype)
            total = tl.dot(low, weights, total, input_precision="ieee")
            if KIND != _INT8:
                high = tl.load(inputs + 16 + i, mask=given, other=0.0)
                weights = _part(codes, scale, offset, table, 8 * i + 4, KIND).to(high.dtype)
                total = tl.dot(high, weights, total, input_precision="ieee")
    place = m[:, None] * rows + n[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(m < count)[:, None] & (n < rows)[None, :])


@dataclass(frozen=True)
class Choice:
    """How a product is taken.

    most: rows of inputs up to which this is chosen
    kernel: "one row", "many rows", or "decode": slabs of weights for the vendor's own product
    tile: words of codes at a time
    inputs, outputs: rows of a tile of inputs, and of weights
    splits: programs that share a panel of one row
    """

    most: int
    kernel: str
    tile: int = 32
    inputs: int = 16
    outputs: int = 64
    splits: int = 8


CHOICES = (
    Choice(1, "one row", tile=64, splits=8),
    Choice(16, "many rows", inputs=16, outputs=32),
    Choice(256, "many rows", inputs=64, outputs=64),
    Choice(1 << 62, "decode"),
)


def choice(count: int) -> Choice:
    """The first that takes so many rows of inputs."""
    return next(each for each in CHOICES if count <= each.most)


def forward(x: Tensor, panels: Tensor, layout: Layout, rows: int, how: Choice) -> Tensor:
    """x [n, cols] times a matrix [rows, cols] in panels, transposed: [n, rows] in x's dtype.

    how: not "decode", and for "one row" n is 1
    """
    x = x.contiguous()
    count, cols = x.shape
    words = panels.view(torch.int32)
    table = torch.from_numpy(table_of("nf4" if layout.kind in _CODES else layout.kind)).to(x.device)
    kind, head = _CODES.get(layout.kind, _TABLE), layout.head // 4
    code_words = layout.width // (4 if layout.kind == "int8" else 8)
    blocks = cols // layout.width
    grid: tuple[int, ...]
    if how.kernel == "one row":
        splits = max(1, min(how.splits, blocks * code_words // how.tile))
        parts = torch.empty((splits, rows), dtype=torch.float32, device=x.device)
        grid = (-(-rows // PANEL_ROWS), splits)
        _one_row[grid](x, words, table, parts, rows, blocks, kind, head, code_words, layout.width, how.tile)
        return parts.sum(0, keepdim=True).to(x.dtype)
    out = torch.empty((count, rows), dtype=x.dtype, device=x.device)
    grid = (-(-count // how.inputs), -(-rows // how.outputs))
    sizes = (kind, head, code_words, layout.width, how.tile, how.inputs, how.outputs)
    _many_rows[grid](x, words, table, out, count, rows, blocks, *sizes)
    return out
