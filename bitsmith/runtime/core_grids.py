"""Codes of safetensors folders as the C++ core multiplies them: rows of its blocks (csrc/run/panels.h)."""

from __future__ import annotations

import numpy as np

from bitsmith.containers.gguf.blocks import CODECS
from bitsmith.containers.gguf.types import TYPES
from bitsmith.containers.nibbles import sign_magnitude
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.affine_bias import AffineBias
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.byte_scaled import NVFP4_TENSOR
from bitsmith.quant.formats.fourbit import DoublyQuantized, FourBit, fp4, nf4
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.formats.microscale import NVFP4
from bitsmith.quant.formats.rowabsmax import RowAbsmax
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.grid import Grid
from bitsmith.quant.tensor import QuantTensor
from bitsmith.runtime.types import PACKED

TABLES = {"nf4": nf4().table, "fp4": fp4().table}  # kinds with a table of 16 values, and no offset
_WIDTHS = (128, 64, 32)  # columns of a block
_RUN = 32  # columns whose nibbles lie together
_MXFP4 = "mxfp4"
_NVFP4 = "nvfp4_64"  # with a scale of the tensor


def grid_layout(format: Format, cols: int) -> str | None:
    """The core's layout for rows of `cols` weights in a format, "int4_128"; None where it has none.

    A block is as wide as divides the weights that share a scale, and stores their scale again.
    """
    if format.name == _MXFP4:
        return _MXFP4 if cols % 32 == 0 else None
    if format == NVFP4_TENSOR:
        return _NVFP4 if cols % 64 == 0 else None
    if format.name in GGML_FORMATS:
        return format.name if format.name in PACKED and cols % format.multiple == 0 else None
    while isinstance(format, TensorWide | DoublyQuantized):
        format = format.row if isinstance(format, TensorWide) else format.plain
    if isinstance(format, AffineBias):
        kind, shared = "int4" if format.bits <= 4 else "int8", format.group
    elif isinstance(format, Affine):
        kind, shared = "int8" if format.bits == 8 else "int4", format.group or cols
    elif isinstance(format, RowAbsmax):
        kind, shared = "int8", cols
    elif isinstance(format, FourBit) and format.table in TABLES.values():
        kind, shared = next(kind for kind, table in TABLES.items() if table == format.table), format.block or cols
    else:
        return None
    width = next((width for width in _WIDTHS if shared % width == 0), None)
    return None if width is None else f"{kind}_{width}"


def block_bytes(layout: str, cols: int) -> int:
    """Bytes of a row in such a layout: codes, and for each block a scale and, of integers, an offset.

    Of NVFP4 with a scale of the tensor: codes, this scale, and four bytes of scales.
    """
    if layout == _MXFP4:
        return cols // 32 * 18
    if layout in TYPES:
        return TYPES[layout].row_bytes(cols)
    kind, _, width = layout.partition("_")
    codes = cols if kind == "int8" else cols // 2
    return codes + cols // int(width) * (4 if kind in TABLES else 8)


def grid_rows(tensor: QuantTensor, layout: str) -> np.ndarray:
    """Rows of blocks: uint8 [rows, bytes per row]. The tensor's format must have this layout, see `grid_layout`.

    ggml's formats become ggml's blocks, but for MXFP4: its scale takes two bytes, as bfloat16. NVFP4 with a scale of
    the tensor becomes ggml's blocks, each behind this scale in float32.

    Others: float32 scale; for integers float32 offset; codes, a byte each or two nibbles, of column j and j + 16 of
    a run. Integers of fewer than 4 bits are stored as those of 4, all with half of the range added.
    """
    if layout == _MXFP4:
        return _mxfp4_rows(tensor)
    if layout == _NVFP4:
        return _nvfp4_rows(tensor)
    if layout in GGML_FORMATS:
        return CODECS[layout].encode(tensor)["data"]
    kind, _, width = layout.partition("_")
    grid = tensor.format.grid(tensor.params)
    assert isinstance(grid, Grid)
    codes = np.asarray(tensor.codes)
    if kind not in TABLES:
        codes = codes + np.uint8((128 if kind == "int8" else 8) + int(grid.table[0]))
    rows, cols = codes.shape
    blocks = cols // int(width)
    params = (
        [grid.scale]
        if kind in TABLES
        else [grid.scale, np.zeros_like(grid.scale) if grid.offset is None else grid.offset]
    )
    heads = [np.repeat(param, blocks // param.shape[1], axis=1)[:, :, None].view(np.uint8) for param in params]
    if kind == "int8":
        packed = codes.reshape(rows, blocks, -1)
    else:
        halves = codes.reshape(rows, blocks, -1, 2, _RUN // 2)
        packed = (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).reshape(rows, blocks, -1)
    return np.concatenate([*heads, packed], axis=2).reshape(rows, -1)


def _mxfp4_rows(tensor: QuantTensor) -> np.ndarray:
    """Blocks of 18 bytes: the scale as bfloat16, then nibbles of column j and j + 16, sign and magnitude."""
    codes, scale = sign_magnitude(np.asarray(tensor.codes)), tensor.format.grid(tensor.params).scale
    rows, cols = codes.shape
    halves = codes.reshape(rows, cols // _RUN, 2, _RUN // 2)
    bits = np.ascontiguousarray(scale, "<f4").view("<u4") >> 16  # a power of two: nothing is lost
    head = bits.astype("<u2").reshape(rows, -1, 1).view(np.uint8)
    return np.concatenate([head, halves[:, :, 0] | halves[:, :, 1] << 4], axis=2).reshape(rows, -1)


def _nvfp4_rows(tensor: QuantTensor) -> np.ndarray:
    plain = QuantTensor(NVFP4, tensor.codes, {"scales": tensor.params["scale"]})
    rows, cols = tensor.codes.shape
    blocks = CODECS[NVFP4.name].encode(plain)["data"].reshape(rows, cols // 64, -1)
    scale = 1 / np.asarray(tensor.params["divisor"], "<f4")
    heads = np.repeat(scale, cols // 64, axis=1)[:, :, None].view(np.uint8)
    return np.concatenate([heads, blocks], axis=2).reshape(rows, -1)
