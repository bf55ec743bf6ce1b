"""NF4 and FP4 of bitsandbytes, with their tables, and their scales quantized in turn.

NF4 (Dettmers et al. 2023, QLoRA, appendix E): quantiles of a normal distribution, zero and both ends included.
FP4 (bitsandbytes): sign, two exponent bits, one mantissa bit, divided by its largest value 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.formats.core_absmax import codebook_codes
from bitsmith.quant.formats.precision import FLOAT32, UINT8, constant
from bitsmith.quant.grid import Array, Grid

BLOCKS = (64, 128, 256)  # numbers of weights that share a scale
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4_PATTERNS = {0: 0.0, 1: 0.0625, 6: 2.0, 7: 3.0, 4: 4.0, 5: 6.0, 2: 8.0, 3: 12.0}  # sign bit: 8
_SMALLEST = 1e-38  # bitsandbytes divides by no smaller absmax


@dataclass(frozen=True)
class FourBit(Codebook):
    """A codebook whose nearest codes without importance are those of bitsandbytes 0.50."""

    def reference(self, w: Array) -> tuple[Array, Params]:
        """See `ReferenceCoded`: the entry nearest to w * (1 / absmax), where `Grid.nearest` divides."""
        found = codebook_codes(self, _bytes(w), "f32") if _is_plain(w) else None
        if found is not None and found.largest < np.inf:
            return found.out, {"scale": found.absmax}
        params = self.fit(w)
        xp = array_namespace(w)
        inverse = 1.0 / xp.clip(params["scale"], _SMALLEST, None)
        shape = (*inverse.shape, w.shape[1] // inverse.shape[1])
        units = xp.reshape(xp.clip(xp.reshape(w, shape) * inverse[:, :, None], -1.0, 1.0), w.shape)
        return self.grid({"scale": xp.ones_like(inverse)}).nearest(units), params


@dataclass(frozen=True)
class DoublyQuantized:
    """A codebook whose scales are quantized too (QLoRA, section 3, "Double Quantization").

    The scales of up to 256 neighbouring blocks of a row, minus their mean, get 8-bit codes on the dynamic map
    (Dettmers et al. 2021, 8-bit optimizers), which represents values near the mean and outliers well. In bitsandbytes
    super-blocks cross rows and there is one mean per tensor (`nested`); here rows are independent.

    Parameters: "scale_code" [rows, blocks] uint8; "scale_range" and "scale_mean" [rows, super-blocks] float32.
    """

    plain: FourBit
    superblock: int = 256

    @property
    def name(self) -> str:
        """The plain format's name with "-dq"."""
        return f"{self.plain.name}-dq"

    @property
    def bits(self) -> int:
        """See `Format`."""
        return self.plain.bits

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return self.plain.multiple

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """scale_code: uint8 [rows, blocks]; scale_range, scale_mean: float32 [rows, super-blocks].

        Raises UnsupportedError if blocks do not divide the row.
        """
        blocks = check_row(self.name, cols, self.multiple) // self.plain.block
        supers = (rows, -(-blocks // self.superblock))
        return {
            "scale_code": ((rows, blocks), UINT8),
            "scale_range": (supers, FLOAT32),
            "scale_mean": (supers, FLOAT32),
        }

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """The scales of the plain format, searched with importance, then quantized."""
        check_row(self.name, w.shape[1], self.multiple)
        scale = self.plain.fit(w, importance)["scale"]
        xp = array_namespace(scale)
        codes, ranges, means = [], [], []
        for part in self._supers(scale):
            mean = xp.mean(xp.astype(part, xp.float64), axis=1, keepdims=True)
            mean = xp.astype(mean, xp.float32)
            spread = xp.max(xp.abs(part - mean), axis=1, keepdims=True)
            codes.append(self._scale_grid(spread, mean).nearest(part))
            ranges.append(spread)
            means.append(mean)
        return {
            "scale_code": xp.concat(codes, axis=1),
            "scale_range": xp.concat(ranges, axis=1),
            "scale_mean": xp.concat(means, axis=1),
        }

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`; range and mean of the super-block do not change."""
        xp = array_namespace(scale)
        codes, values = [], []
        for at, block in enumerate(range(blocks.start, blocks.stop)):
            i = block // self.superblock
            grid = self._scale_grid(params["scale_range"][:, i : i + 1], params["scale_mean"][:, i : i + 1])
            codes.append(grid.nearest(scale[:, at : at + 1]))
            values.append(grid.values(codes[-1]))
        return StoredScales(
            {"scale_code": xp.concat(codes, axis=1)}, xp.clip(xp.concat(values, axis=1), 0.0, None), None
        )

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        xp = array_namespace(params["scale_mean"])
        parts = [
            self._scale_grid(params["scale_range"][:, i : i + 1], params["scale_mean"][:, i : i + 1]).values(codes)
            for i, codes in enumerate(self._supers(params["scale_code"]))
        ]
        scale = xp.clip(xp.concat(parts, axis=1), 0.0, None)  # a scale near zero may come out below it
        return self.plain.grid({"scale": scale})

    def _supers(self, x: Array) -> list[Array]:
        """The columns of each super-block; the last of a row may be shorter."""
        return [x[:, start : start + self.superblock] for start in range(0, x.shape[1], self.superblock)]

    def _scale_grid(self, spread: Array, mean: Array) -> Grid:
        return Grid(constant(dynamic_map(), mean), spread, mean, 0)


def nf4(block: int = 64) -> FourBit:
    """NormalFloat4; the stored pattern is the code itself, as in bitsandbytes."""
    return FourBit(_named("nf4", block), 4, _NF4, tuple(range(16)), (), block)


def fp4(block: int = 64) -> FourBit:
    """bitsandbytes' FP4: 15 distinct values. Zero has two codes; the upper one is stored with the sign bit.

    bitsandbytes on CPU gives the lower zero (pattern 0) to weights up to zero, the upper one (pattern 8) to those
    above.
    """
    positive = sorted((value / 12.0, pattern) for pattern, value in _FP4_PATTERNS.items() if value)
    negative = [(-value, pattern | 8) for value, pattern in reversed(positive)]
    entries = [*negative, (0.0, 0), (0.0, 8), *positive]
    table = tuple(float(np.float32(value)) for value, _ in entries)
    return FourBit(_named("fp4", block), 4, table, tuple(pattern for _, pattern in entries), (), block)


def _is_plain(w: Array) -> bool:
    return isinstance(w, np.ndarray) and w.dtype == np.float32


def _bytes(w: np.ndarray) -> np.ndarray:
    """Float32 weights as stored ones: uint8 [rows, bytes]."""
    return np.require(w, requirements=["C", "A"]).view(np.uint8)


def _named(name: str, block: int) -> str:
    return name if block == BLOCKS[0] else f"{name}-g{block}"


@lru_cache
def dynamic_map() -> np.ndarray:
    """Dynamic tree quantization, signed, 8 bits: 256 ascending values in (-1, 1], float32 (Dettmers et al. 2021).

    For each decade 10^(i - 6), i = 0..6: the middles of 2^i equal intervals of 0.1..1, with both signs. Also zero and
    one. Every step is rounded as in bitsandbytes' `create_dynamic_map`, so that all bits agree.
    """
    positive: list[np.float32] = []
    for i in range(7):
        ends = _even_steps(2**i + 1)
        positive.extend(np.float32(10.0 ** (i - 6)) * ((ends[:-1] + ends[1:]) / np.float32(2.0)))
    table = np.sort(np.array([0.0, 1.0, *positive, *(-x for x in positive)], np.float32))
    table.flags.writeable = False
    return table


def _even_steps(count: int) -> np.ndarray:
    """`count` values from 0.1 to 1, as torch.linspace rounds them: each half from its own end, by one fused step."""
    start = np.float64(np.float32(0.1))
    step = np.float64((np.float32(1.0) - np.float32(0.1)) / np.float32(count - 1))
    i = np.arange(count)
    return np.where(i < count // 2, start + step * i, 1.0 - step * (count - 1 - i)).astype(np.float32)
