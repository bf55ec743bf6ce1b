"""What a format is: which values a weight may take, and how its scales are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from bitsmith.errors import UnsupportedError
from bitsmith.quant.grid import Array, Grid

Params = Mapping[str, Array]  # by name, in stored precision; leading dimension: rows


class Format(Protocol):
    """A frozen value object. Formats never touch bytes of containers (codecs do) and never read files.

    name: as written in recipes and files: "q4_k", "int4-g128", "nf4"
    bits: width of a code
    multiple: a row's length must divide by this
    """

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def multiple(self) -> int: ...

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each parameter for a [rows, cols] matrix; leading dimension `rows`."""
        ...

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """Choose scales for `w`, float32 [rows, cols], rounded to the precision they are stored in.

        importance: [cols] float32, >= 0, mean squared input of each column; None minimises plain
            squared error. An all-zero importance counts as None.
        """
        ...

    def grid(self, params: Params) -> Grid:
        """The frozen grid of stored parameters; float32."""
        ...


@runtime_checkable
class ReferenceCoded(Protocol):
    """A format whose nearest codes follow a published reference that rounds before its scale is stored.

    Only ggml's Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 without importance: bytes then equal llama.cpp's.
    """

    def reference(self, w: Array) -> tuple[Array, Params]:
        """Codes uint8 [rows, cols] and stored parameters of `w`, float32 [rows, cols]."""
        ...


@runtime_checkable
class NeedsExtent(Protocol):
    """A format with one scale for the whole tensor: slabs of rows must be told the tensor's extent first."""

    def with_extent(self, low: float, high: float) -> Format:
        """The same format for a tensor whose smallest weight is `low` and largest is `high`."""
        ...


@runtime_checkable
class IntegerParams(Protocol):
    """A format with integers among its parameters that learned rounding may change."""

    @property
    def integer_ranges(self) -> Mapping[str, tuple[int, int]]:
        """The least and the greatest value of each, by the parameter's name."""
        ...


def check_row(name: str, cols: int, multiple: int) -> int:
    """`cols`, if it is a positive multiple. Raises UnsupportedError otherwise."""
    if cols < 1 or cols % multiple:
        raise UnsupportedError(
            f"{name} needs rows whose length divides by {multiple}; these have {cols} weights. "
            "Choose a format with smaller groups, or leave the tensor in f16"
        )
    return cols


@dataclass(frozen=True)
class StoredScales:
    """What some neighbouring blocks can store of the scales and offsets wanted for them.

    params: the parameters that belong to these blocks alone, [rows, blocks] each, in stored precision
    scale, offset: what they mean, float32 [rows, blocks]; offset is None where the grid has none
    """

    params: Params
    scale: Array
    offset: Array | None


@runtime_checkable
class Refittable(Protocol):
    """A format that can store other scales for a block than `fit` chose, so that rounders refit them to the codes."""

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """The nearest that can be stored for `blocks` of each row, float32 [rows, blocks].

        params: of the whole rows; those that other blocks share stay as they are
        offset: None where the grid has none
        """
        ...
