"""X^T X in Triton: products of bfloat16 with float32 sums, of one half of the matrix, without a copy of the inputs.

torch rounds the result of a product of bfloat16 matrices, unless its version can be told not to; here sums stay in
float32. TRITON_INTERPRET=1 runs the kernel on a CPU, slowly: tests do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitsmith.system.accelerators import interpreted

_TILE = 128  # columns of the matrix on either side of a tile
_TOKENS = 32  # tokens of a product
_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _rounded(x, HALVES: tl.constexpr):  # type: ignore[no-untyped-def]
    """x, float32, rounded to bfloat16, half to even; kept in float32 without HALVES, for the interpreter."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 32767 + ((bits >> 16) & 1)) & -65536
    found = bits.to(tl.float32, bitcast=True)
    if HALVES:
        found = found.to(tl.bfloat16)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _add_products(  # type: ignore[no-untyped-def]
    x,
    original,
    total,
    tokens,
    cols,
    TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    DRIFT: tl.constexpr,
    HALVES: tl.constexpr,
):
    """Add a tile of x^T x, or with DRIFT of (original - x)^T x, to total [cols, cols]. x, original: [tokens, cols]

    Tiles of x^T x below the diagonal are left out: the matrix is symmetric.
    """
    down, across = tl.program_id(0), tl.program_id(1)
    if DRIFT or down <= across:
        row = down * TILE + tl.arange(0, TILE)
        column = across * TILE + tl.arange(0, TILE)
        found = tl.zeros([TILE, TILE], tl.float32)
        for start in range(0, tokens, TOKENS):
            token = start + tl.arange(0, TOKENS)
            line = token.to(tl.int64)[:, None] * cols
            left_of, right_of = line + row[None, :], line + column[None, :]
            there = (token < tokens)[:, None]
            left_there, right_there = there & (row < cols)[None, :], there & (column < cols)[None, :]
            left = tl.load(x + left_of, mask=left_there, other=0.0).to(tl.float32)
            right = tl.load(x + right_of, mask=right_there, other=0.0).to(tl.float32)
            if DRIFT:
                left = tl.load(original + left_of, mask=left_there, other=0.0).to(tl.float32) - left
            left, right = _rounded(left, HALVES), _rounded(right, HALVES)
            found = tl.dot(tl.trans(left), right, found, input_precision="ieee")
        place = row.to(tl.int64)[:, None] * cols + column[None, :]
        inside = (row < cols)[:, None] & (column < cols)[None, :]
        tl.store(total + place, tl.load(total + place, mask=inside, other=0.0) + found, mask=inside)


def add_rounded(gram: Tensor, drift: Tensor | None, x: Tensor, original: Tensor | None) -> None:
    """Add X^T X on and above the diagonal of `gram`, and (X0 - X)^T X to `drift`: float32 [cols, cols], in place.

    x, original: X and X0, float32 or bfloat16 [tokens, cols]; X, and X0 - X, are rounded to bfloat16 in registers
    """
    x = x.contiguous()
    tokens, cols = x.shape
    tile = _TILE if cols >= _TILE else max(16, 1 << (cols - 1).bit_length())
    tiles = -(-cols // tile)
    sizes = {"TILE": tile, "TOKENS": _TOKENS, "HALVES": not interpreted(), "num_warps": _WARPS}
    _add_products[(tiles, tiles)](x, x, gram, tokens, cols, DRIFT=False, **sizes)
    if drift is not None and original is not None:
        _add_products[(tiles, tiles)](x, original.contiguous(), drift, tokens, cols, DRIFT=True, **sizes)


def multiplies_halves(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself: NVIDIA's from compute capability 8.0 on."""
    if device.type != "cuda":
        return interpreted()
    return torch.cuda.get_device_capability(device)[0] >= 8
