"""What a format is: which values a weight may take, and how its scales are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from bitsmith.errors import UnsupportedError
from bitsmith.quant.grid import Array, Grid
from bitsmith.quant.vector_grid import VectorGrid

AnyGrid = Grid | VectorGrid
Params = Mapping[str, Array]  # by name, in stored precision; the first dimension is rows


class Format(Protocol):
    """A frozen value object. Formats do not handle the bytes of containers (codecs do) and do not read files.

    name: as written in recipes and files: "q4_k", "int4-g128", "nf4"
    bits: bits per code
    multiple: a row's length must divide by this
    """

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def multiple(self) -> int: ...

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each parameter for a [rows, cols] matrix; the first dimension is `rows`."""
        ...

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """Choose scales for `w`, float32 [rows, cols], rounded to stored precision.

        importance: [cols] float32, >= 0, mean squared input of each column; None minimises plain
            squared error. An importance of all zeros counts as None.
        """
        ...

    def grid(self, params: Params) -> AnyGrid:
        """The float32 grid of stored parameters."""
        ...


@runtime_checkable
class VectorFormat(Format, Protocol):
    """A format whose codes stand for vectors of eight weights. Its grid is a `VectorGrid`."""

    def nearest(self, w: Array, importance: Array | None = None) -> tuple[Array, Params]:
        """Scales for `w`, float32 [rows, cols], and its nearest codes, int32 [rows, cols / 8]; see `Format.fit`."""
        ...


@runtime_checkable
class ReferenceCoded(Protocol):
    """A format whose nearest codes follow a published reference that chooses codes before it rounds the scale.

    These are ggml's Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 without importance. Their bytes then equal llama.cpp's.
    """

    def reference(self, w: Array) -> tuple[Array, Params]:
        """Codes uint8 [rows, cols] and stored parameters of `w`, float32 [rows, cols]."""
        ...


@runtime_checkable
class NeedsExtent(Protocol):
    """A format with one scale for the whole tensor. It needs the tensor's extent before it fits slabs of rows."""

    def with_extent(self, low: float, high: float) -> Format:
        """The same format for a tensor whose smallest weight is `low` and largest is `high`."""
        ...


@runtime_checkable
class SharesExtent(NeedsExtent, Protocol):
    """A format whose one scale is shared by the tensors that runtimes load as one matrix: q, k and v; gate and up.

    shares_extent: whether it is so
    low, high: the extent; None until `with_extent`
    """

    @property
    def shares_extent(self) -> bool: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


@runtime_checkable
class Settled(Protocol):
    """A format whose stored scales depend on all scales of the tensor.

    `fit` gives free scales for slabs of rows. Once all rows have theirs, `settled` replaces them by what can be stored.
    """

    def settled(self, params: Params) -> dict[str, np.ndarray]:
        """The parameters of a whole tensor as they are stored, from those with free scales; numpy arrays."""
        ...

    def settled_on(self, params: Mapping[str, np.ndarray]) -> Format:
        """The same format with these parameters for the rows that it is given next."""
        ...


@runtime_checkable
class IntegerParams(Protocol):
    """A format with integer parameters that learned rounding may change."""

    @property
    def integer_ranges(self) -> Mapping[str, tuple[int, int]]:
        """Lowest and highest value of each integer parameter, by name."""
        ...


def check_row(name: str, cols: int, multiple: int) -> int:
    """Return `cols` if it is a positive multiple of `multiple`. Raises UnsupportedError otherwise."""
    if cols < 1 or cols % multiple:
        raise UnsupportedError(
            f"{name} needs rows whose length divides by {multiple}; these have {cols} weights. "
            "Choose a format with smaller groups, or leave the tensor in f16"
        )
    return cols


@dataclass(frozen=True)
class StoredScales:
    """The storable scales and offsets of some neighbouring blocks.

    params: the parameters that only these blocks use, [rows, blocks] each, in stored precision
    scale, offset: their values, float32 [rows, blocks]; offset is None if the grid has none
    """

    params: Params
    scale: Array
    offset: Array | None


@runtime_checkable
class Refittable(Protocol):
    """A format in which rounders can refit the scale of a block to its codes after `fit`."""

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """The storable values nearest to `scale` and `offset`, float32 [rows, blocks], for `blocks` of each row.

        params: parameters of whole rows; those shared with other blocks do not change
        offset: None if the grid has none
        """
        ...
