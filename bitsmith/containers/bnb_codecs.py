"""One tensor in bitsandbytes' layouts, as transformers stores them (bitsandbytes 0.50, `QuantState`, `Linear8bitLt`).

4 bits, for a weight [out, in] of a module M; numbers are counted through the whole tensor, row after row:

- M.weight uint8 [out * in / 2, 1]: two codes a byte, the first in the upper half; it may be stored as another dtype
- M.weight.absmax: float32, one for each block of weights; doubly quantized: uint8 codes, and then also
- M.weight.nested_absmax float32, one for each 256 of them, and M.weight.nested_quant_map float32 [256]
- M.weight.quant_map float32 [16]: what the codes mean
- M.weight.quant_state.bitsandbytes__nf4 (or fp4) uint8: JSON with quant_type, blocksize, dtype, shape, ...

8 bits: M.weight int8 [out, in], M.SCB float32 [out], the absmax of each row; M.weight_format uint8 [], 0 for rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bitsmith.containers.base import RowAxis, cut, join_slabs
from bitsmith.containers.patterns import from_patterns, to_patterns
from bitsmith.errors import TensorError, UnsupportedError
from bitsmith.quant.formats.fourbit import FourBit, dynamic_map, fp4, nf4
from bitsmith.quant.formats.nested import NESTED_BLOCK, Nested, nest
from bitsmith.quant.formats.precision import FLOAT32, UINT8, as_numpy
from bitsmith.quant.formats.rowabsmax import RowAbsmax
from bitsmith.quant.tensor import QuantTensor

TABLES = {"nf4": nf4, "fp4": fp4}
WEIGHT, ABSMAX, MAP = "weight", "weight.absmax", "weight.quant_map"
NESTED_ABSMAX, NESTED_MAP = "weight.nested_absmax", "weight.nested_quant_map"
STATE = "weight.quant_state.bitsandbytes__"
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # as the state names the dtype of decoded weights
_OFFSET_WIDTH = 24  # bytes of the longest float in JSON; shorter ones are followed by spaces
_BYTE = np.dtype("i1")
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class FourBitCodec:
    """NF4 or FP4 in blocks.

    format: the format in the file: `Nested` if scales are doubly quantized
    shape: the tensor's shape, (0, 0) if it is not known yet; see `of_shape`
    precision: what the state says of decoded weights: "bf16", "f16", "f32"
    storage: dtype in which the bytes of codes are stored
    state_bytes: length of the state in a file; 0 for the length that is written
    """

    format: FourBit | Nested
    shape: tuple[int, int] = (0, 0)
    precision: str = "bf16"
    storage: np.dtype = UINT8
    state_bytes: int = 0

    @property
    def name(self) -> str:
        """The layout's name: "bnb/nf4", "bnb/fp4-g128-dq", "bnb/nf4-in-bfloat16"."""
        storage = "" if self.storage == UINT8 else f"-in-{self.storage.name}"
        return f"bnb/{self.plain.name}{'-dq' if self.nested else ''}{storage}"

    @property
    def plain(self) -> FourBit:
        """The format without double quantization."""
        return self.format.plain if isinstance(self.format, Nested) else self.format

    @property
    def nested(self) -> bool:
        """Whether scales are doubly quantized."""
        return isinstance(self.format, Nested)

    @property
    def kind(self) -> str:
        """ "nf4" or "fp4"."""
        return self.plain.name[:3]

    def of_shape(self, shape: tuple[int, ...]) -> FourBitCodec:
        """The codec of a tensor of this shape. Raises UnsupportedError if it is not a matrix."""
        if len(shape) != 2 or not math.prod(shape):
            raise UnsupportedError(f"bitsandbytes' layout holds matrices, not {list(shape)}; leave the tensor in f16")
        return replace(self, shape=(shape[0], shape[1]))

    @property
    def row_multiple(self) -> int:
        """Number of rows after which bytes, blocks and ranges of scales all begin anew."""
        cols, block = max(self.shape[1], 1), self.plain.block
        units = [2 * self.storage.itemsize, block, *([block * NESTED_BLOCK] if self.nested else [])]
        return math.lcm(*(unit // math.gcd(unit, cols) for unit in units))

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Rows lie along the first axis of codes and scales; the other parts have none."""
        rows, weights = self.row_multiple, self.row_multiple * self.shape[1]
        counted = {WEIGHT: 2 * self.storage.itemsize, ABSMAX: self.plain.block}
        counted |= {NESTED_ABSMAX: self.plain.block * NESTED_BLOCK} if self.nested else {}
        found: dict[str, RowAxis | None] = {part: RowAxis(0, rows, weights // each) for part, each in counted.items()}
        return found | dict.fromkeys(name for name in self._parts if name not in found)

    @property
    def _parts(self) -> tuple[str, ...]:
        nested = (NESTED_ABSMAX, NESTED_MAP) if self.nested else ()
        return (WEIGHT, ABSMAX, *nested, MAP, STATE + self.kind)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        own = self if self.shape == shape else self.of_shape(shape)
        count = math.prod(own.shape)
        blocks = -(-count // self.plain.block)
        found: Layout = {
            WEIGHT: ((-(-count // (2 * self.storage.itemsize)), 1), self.storage),
            ABSMAX: ((blocks,), UINT8 if self.nested else FLOAT32),
            NESTED_ABSMAX: ((-(-blocks // NESTED_BLOCK),), FLOAT32),
            NESTED_MAP: ((256,), FLOAT32),
            MAP: ((16,), FLOAT32),
            STATE + self.kind: ((self.state_bytes or len(own.state(0.0)),), UINT8),
        }
        return {name: found[name] for name in self._parts}

    def state(self, offset: float) -> bytes:
        """The state as bitsandbytes writes it, with spaces so that its length does not depend on the offset."""
        block, shape = self.plain.block, list(self.shape)
        found = {"quant_type": self.kind, "blocksize": block, "dtype": DTYPES[self.precision], "shape": shape}
        if not self.nested:
            return json.dumps(found).encode()
        found |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        text = json.dumps(found)
        return text.ljust(len(text) - len(repr(offset)) + _OFFSET_WIDTH).encode()

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows. Doubly quantized scales are still absmax in float32, until `join`.

        Raises UnsupportedError if the rows do not divide into blocks.
        """
        patterns = to_patterns(as_numpy(tensor.codes), self.plain).reshape(-1)
        absmax = as_numpy(tensor.params.get("absmax", tensor.params["scale"]))
        return self.parts_of((patterns[::2] << 4 | patterns[1::2]).reshape(-1, 1), absmax)

    def parts_of(self, packed: np.ndarray, absmax: np.ndarray) -> dict[str, np.ndarray]:
        """The same from codes in bytes, uint8 [bytes, 1], and absmax, float32 [rows, blocks]."""
        parts = {
            WEIGHT: packed,
            ABSMAX: np.ascontiguousarray(absmax).reshape(-1),
            MAP: self._map(),
            STATE + self.kind: np.frombuffer(self.state(0.0), UINT8),
        }
        return parts if not self.nested else self._with_nested(parts)

    def _with_nested(self, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = nest(parts[ABSMAX])
        state = np.frombuffer(self.state(float(found.mean)), UINT8)
        every = {**parts, NESTED_ABSMAX: found.ranges, NESTED_MAP: dynamic_map(), STATE + self.kind: state}
        return {name: every[name] for name in self._parts}

    def _map(self) -> np.ndarray:
        values = np.zeros(16, np.float32)
        values[list(self.plain.patterns)] = self.plain.table
        return values

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Join the parts of a tensor's slabs, and quantize the scales of all of them.

        Slabs that are copied from a file have quantized scales already.
        """
        joined = join_slabs(self, slabs)
        if not self.nested or joined[ABSMAX].dtype == UINT8:
            return joined
        return self._with_nested(joined) | {ABSMAX: nest(joined[ABSMAX]).codes}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows that begins with a block, or of a `window`.

        Blocks that cross rows become smaller ones that do not. Raises TensorError for a table that is not the type's,
        and for absmax that no weights have.
        """
        if not np.allclose(parts[MAP], self._map(), rtol=0, atol=1e-6):
            raise TensorError(f"quant_map is not the table of {self.kind}; the file is damaged: make it again")
        halves = np.ascontiguousarray(parts[WEIGHT]).reshape(-1).view(np.uint8)
        patterns = np.stack([halves >> 4, halves & 15], axis=1).reshape(-1)
        rows = len(patterns) // cols
        self._check_scales(parts)
        small = math.gcd(self.plain.block, cols)
        format = replace(self.plain, block=small)
        codes = from_patterns(patterns[: rows * cols].reshape(rows, cols), format)
        scale = self._by_row(parts, rows, cols, small)
        return QuantTensor(format, codes, {"scale": scale})

    def _check_scales(self, parts: Mapping[str, np.ndarray]) -> None:
        if not self.nested:
            check_absmax(ABSMAX, parts[ABSMAX])
            return
        check_absmax(NESTED_ABSMAX, parts[NESTED_ABSMAX])
        if not np.allclose(parts[NESTED_MAP], dynamic_map(), rtol=0, atol=1e-6):
            raise TensorError("nested_quant_map is not the table of 8 bits; the file is damaged: make it again")

    def _by_row(self, parts: Mapping[str, np.ndarray], rows: int, cols: int, small: int) -> np.ndarray:
        """Scales of blocks of `small` weights: float32 [rows, blocks]."""
        absmax = parts[ABSMAX]
        if absmax.ndim == 2:
            return absmax
        if self.nested:
            ranges = np.repeat(parts[NESTED_ABSMAX], NESTED_BLOCK)[: len(absmax)]
            offset = np.float32(json.loads(parts[STATE + self.kind].tobytes())["nested_offset"])
            absmax = parts[NESTED_MAP][absmax] * ranges + offset
            absmax = np.maximum(absmax.astype(np.float32), np.float32(0.0))
        each = np.repeat(absmax, self.plain.block // small)
        return np.ascontiguousarray(each[: rows * (cols // small)].reshape(rows, cols // small))

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """Parts of some rows of a slab: codes in whole bytes, and scales by row."""
        tensor = self.decode(parts, self.shape[1])
        patterns = to_patterns(tensor.codes[start:stop], tensor.format).reshape(-1)
        patterns = np.pad(patterns, (0, len(patterns) % 2))
        cuts = {WEIGHT: patterns[::2] << 4 | patterns[1::2], ABSMAX: tensor.params["scale"][start:stop]}
        return {**parts, **cuts}


@dataclass(frozen=True)
class RowInt8Codec:
    """int8 and the absmax of each row."""

    format: RowAbsmax = field(default_factory=RowAbsmax)

    @property
    def name(self) -> str:
        """The layout's name."""
        return "bnb/int8"

    @property
    def row_multiple(self) -> int:
        """Slabs may begin at any row."""
        return 1

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Rows lie along the first axis of codes and scales."""
        return {"weight": RowAxis(0), "SCB": RowAxis(0), "weight_format": None}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        if len(shape) != 2:
            raise UnsupportedError(f"bitsandbytes' layout holds matrices, not {list(shape)}; leave the tensor in f16")
        return {"weight": (shape, _BYTE), "SCB": ((shape[0],), FLOAT32), "weight_format": ((), UINT8)}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        codes = (as_numpy(tensor.codes) ^ np.uint8(128)).view(_BYTE)
        return self.parts_of(codes, as_numpy(tensor.params["absmax"]).reshape(-1))

    def parts_of(self, codes: np.ndarray, absmax: np.ndarray) -> dict[str, np.ndarray]:
        """The same from int8 [rows, cols] and absmax, float32 [rows]."""
        return {"weight": codes, "SCB": absmax, "weight_format": np.zeros((), UINT8)}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows.

        Raises TensorError if rows do not lie one after the other, and for absmax that no weights have.
        """
        if int(parts["weight_format"]) != 0:
            raise TensorError(
                f"weight_format is {int(parts['weight_format'])}, an order for one kind of GPU; only 0, rows, is read. "
                "Load the model with bitsandbytes and save it again"
            )
        check_absmax("SCB", parts["SCB"])
        codes = parts["weight"].view(np.uint8) ^ np.uint8(128)
        return QuantTensor(self.format, codes, {"absmax": parts["SCB"].reshape(-1, 1)})

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return join_slabs(self, slabs)

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """Parts of some rows of a slab."""
        return {
            **parts,
            "weight": cut(parts["weight"], 0, start, stop),
            "SCB": cut(parts["SCB"], 0, start, stop),
        }


def check_absmax(name: str, absmax: np.ndarray) -> None:
    """Raises TensorError where the largest magnitude of some weights is negative, Inf or NaN."""
    wrong = ~(np.isfinite(absmax) & (absmax >= 0))
    if wrong.any():
        found = float(absmax[wrong].flat[0])
        raise TensorError(f"{name} has {found}, expected finite numbers from 0; the file is damaged: make it again")
