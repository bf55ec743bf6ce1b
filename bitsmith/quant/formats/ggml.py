"""The formats of ggml by name: one visible table."""

from __future__ import annotations

from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.code_books import CODE_BOOKS
from bitsmith.quant.formats.few_levels import FEW_LEVELS
from bitsmith.quant.formats.ggml_simple import AffineBlocks, Q8Blocks, SymmetricBlocks
from bitsmith.quant.formats.iq4 import IQ4_LEVELS, IQ4_TARGETS, IQ4NL
from bitsmith.quant.formats.kquants import AffineK, SymmetricK
from bitsmith.quant.formats.microscale import MXFP4, NVFP4
from bitsmith.quant.scale_search import Levels


def _steps(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(first + (last - first) * i / (count - 1) for i in range(count))


_NEAR_ONE = _steps(0.97, 1.03, 7)
_Q3_TARGETS = (*_steps(-2.8, -4.8, 9), *_steps(2.4, 4.0, 7))
_Q6_TARGETS = (*_steps(-31.0, -33.0, 9), *_steps(30.5, 32.0, 7))

_ALL: tuple[Format, ...] = (
    Q8Blocks(),
    SymmetricBlocks("q4_0", 4, (*_steps(-7.0, -9.0, 9), *_steps(6.5, 8.0, 7))),
    AffineBlocks("q4_1", 4, _steps(14.0, 16.5, 11)),
    SymmetricBlocks("q5_0", 5, (*_steps(-15.0, -17.0, 9), *_steps(14.5, 16.0, 7))),
    AffineBlocks("q5_1", 5, _steps(30.0, 32.5, 11)),
    AffineK("q2_k", 2, 16, 15, _steps(2.2, 3.8, 9), reach=3),
    SymmetricK("q3_k", 3, 16, -32, 31, Levels(-4, 3), _Q3_TARGETS, shares=_NEAR_ONE, reach=2),
    AffineK("q4_k", 4, 32, 63, _steps(13.0, 16.5, 15), reach=2),
    AffineK("q5_k", 5, 32, 63, _steps(28.5, 32.5, 13), reach=2),
    SymmetricK("q6_k", 6, 16, -128, 127, Levels(-32, 31), _Q6_TARGETS, shares=_NEAR_ONE),
    IQ4NL(),
    SymmetricK("iq4_xs", 4, 32, -32, 31, IQ4_LEVELS, IQ4_TARGETS, shares=_NEAR_ONE, reach=2),
    MXFP4,
    NVFP4,
    *FEW_LEVELS,
    *CODE_BOOKS,
)

GGML_FORMATS: dict[str, Format] = {format.name: format for format in _ALL}
