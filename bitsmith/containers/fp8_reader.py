"""Reads FP8 weights as models ship them: E4M3 bytes with scales for blocks, rows or the whole tensor.

Known layouts: blocks of 128 x 128 with "weight_scale_inv" (DeepSeek-V3, Qwen3-FP8), and "weight_scale" for a tensor,
for rows or for blocks (AutoFP8, vLLM, FBGEMM, ModelOpt). In all of them a weight is its E4M3 value times its scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.base import RowAxis, join_slabs
from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.floats import FP8_PREFIX
from bitsmith.containers.hf_entries import precision_of
from bitsmith.containers.patterns import from_patterns
from bitsmith.errors import UnsupportedError
from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.precision import PRECISIONS
from bitsmith.quant.tensor import QuantTensor, TensorInfo
from bitsmith.system.number_types import number_type

_SCALES = (".weight_scale_inv", ".weight_scale")
_BESIDE = ("input_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale")
_E4M3 = "float8_e4m3fn"
_USUAL_BLOCK = (128, 128)


@dataclass(frozen=True)
class Fp8Codec:
    """E4M3 bytes [rows, cols] and their scales. Only reading is supported.

    block: number of rows and of columns that share a scale; 0: all
    precision: of the scales: "f32", "f16" or "bf16"
    rank: number of dimensions of the stored scales
    """

    block: tuple[int, int]
    precision: str
    rank: int

    @property
    def name(self) -> str:
        """The layout's name: "fp8/block128x128", "fp8/channel", "fp8/tensor-bf16"."""
        rows, cols = self.block
        scope = f"block{rows}x{cols}" if rows and cols else "tensor" if not rows else "channel"
        precision = "" if self.precision == "f32" else f"-{self.precision}"
        usual = 2 if rows else 0
        return f"{FP8_PREFIX}{scope}{precision}" + ("" if self.rank == usual else f"-{self.rank}d")

    @property
    def format(self) -> Codebook:
        """The format of rows whose length is a multiple of the block."""
        return self._format(self.block[1])

    @property
    def row_multiple(self) -> int:
        """Slabs begin at whole blocks of rows."""
        return self.block[0] or 1

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Rows lie along the first axis of both; a scale for all rows has none."""
        return {"weight": RowAxis(0), "scale": RowAxis(0, self.block[0], 1) if self.block[0] else None}

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        if len(shape) != 2:
            raise UnsupportedError(f"FP8 weights are matrices, not of {len(shape)} dimensions")
        scales = tuple(-(-size // block) if block else 1 for size, block in zip(shape, self.block, strict=True))
        return {"weight": (shape, number_type(_E4M3)), "scale": (scales[: self.rank], PRECISIONS[self.precision])}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Not supported: `--to compressed/fp8` writes FP8."""
        raise UnsupportedError(f"{self.name} is only read; write --to=compressed/fp8")

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows that begins with a block, or of a `window`.

        A row that ends within a block gets scales of a smaller block that divides it. Raises TensorError for NaN.
        """
        weight = parts["weight"].view(np.uint8)
        scale = _by_row(parts["scale"], len(weight), self.block[0])
        small = math.gcd(self.block[1], cols) if self.block[1] else 0
        if small:
            scale = np.repeat(scale, self.block[1] // small, axis=1)[:, : cols // small]
        format = self._format(small)
        return QuantTensor(format, from_patterns(weight, format), {"scale": np.ascontiguousarray(scale)})

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return join_slabs(self, slabs)

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """Parts of some rows of a slab, with one row of scales for each."""
        scale = _by_row(parts["scale"], len(parts["weight"]), self.block[0])
        return {"weight": parts["weight"][start:stop], "scale": scale[start:stop]}

    def _format(self, group: int) -> Codebook:
        row = fp8(self.precision)
        return replace(row, name=f"{row.name}-g{group}", block=group) if group else row


def _by_row(scale: np.ndarray, rows: int, block: int) -> np.ndarray:
    """One row of scales for each row of the slab: [rows, scales]."""
    table = scale.reshape(scale.shape[0], math.prod(scale.shape[1:])) if block else scale.reshape(1, 1)
    if len(table) == rows:
        return table
    return np.repeat(table, block, axis=0)[:rows] if block else np.broadcast_to(table, (rows, table.shape[1]))


def fold_fp8(folder: Path, config: Mapping[str, Any] | None, entries: Entries) -> Iterator[CompositeTensor]:
    """The FP8 weights that have scales. config: `quantization_config`, for the size of blocks; None if there is none

    Raises FileError if entries contradict each other, UnsupportedError for scales of an unknown shape.
    """
    for name, (_, entry) in entries.items():
        scales = [name.removesuffix(".weight") + ending for ending in _SCALES]
        found = next((scale for scale in scales if scale in entries), None)
        if not name.endswith(".weight") or entry.dtype != "F8_E4M3" or len(entry.shape) != 2 or found is None:
            continue
        shape = entry.shape[0], entry.shape[1]
        scale_shape = entries[found][1].shape
        block = _block(folder, found, shape, scale_shape, config or {})
        codec = Fp8Codec(block, precision_of(folder, entries, found), len(scale_shape))
        module = name.removesuffix(".weight")
        beside = tuple(f"{module}.{part}" for part in _BESIDE if f"{module}.{part}" in entries)
        info = TensorInfo(name, shape, codec.name, 0)
        names = {"weight": name, "scale": found}
        yield fold(folder, codec, info, names, entries, said_by="the FP8 scales beside it", beside=beside)


def _block(
    folder: Path, name: str, shape: tuple[int, int], scales: tuple[int, ...], config: Mapping[str, Any]
) -> tuple[int, int]:
    if math.prod(scales) == 1 and len(scales) < 2:
        return 0, 0
    if scales in ((shape[0],), (shape[0], 1)):
        return 1, 0
    given = config.get("weight_block_size")
    sound = isinstance(given, list) and len(given) == 2 and all(type(size) is int and size > 0 for size in given)
    block = (given[0], given[1]) if sound and given is not None else _USUAL_BLOCK
    if scales == tuple(-(-size // each) for size, each in zip(shape, block, strict=True)):
        return block
    if math.prod(scales) == 1:
        return 0, 0
    raise UnsupportedError(
        f"{folder}: {name} has shape {list(scales)} for a weight of {list(shape)}; known are one scale, one for each "
        f"row, and blocks of {block[0]} x {block[1]} (quantization_config.weight_block_size)"
    )
