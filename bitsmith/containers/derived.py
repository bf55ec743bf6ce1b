"""Tensors that a file does not hold as such, but whose rows it holds: stacks of experts, halves of fused matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from bitsmith.containers.base import Extent, Source
from bitsmith.containers.floats import MXFP4_STACK, NUMBERS
from bitsmith.containers.gguf.types import TYPES
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import PackedTensor, QuantTensor, TensorInfo

_BY_ROW = frozenset({*NUMBERS, *TYPES, MXFP4_STACK})  # layouts whose parts are cut by row


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor in the file: `first`, `first + step`, ...; `count` of them.

    matrix: number of a matrix of a stack [matrices, cols, rows] that is read transposed: the rows are its columns
    columns: (first, step) of the columns that are taken; None for all
    """

    name: str
    first: int
    count: int
    step: int = 1
    matrix: int | None = None
    columns: tuple[int, int] | None = None

    @property
    def by_row(self) -> bool:
        """Whether the piece is whole rows of the file."""
        return self.matrix is None and self.columns is None


@dataclass(frozen=True)
class Columns:
    """An order of columns: they lie as [groups, each, width] in the pieces, and as [each, groups, width] here."""

    groups: int
    each: int
    width: int

    def applied(self, values: np.ndarray) -> np.ndarray:
        """[rows, cols] -> the same in the other order."""
        rows = values.reshape(len(values), self.groups, self.each, self.width)
        return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)


@dataclass(frozen=True)
class Derived:
    """A tensor made of pieces, row below row.

    shift: added to every value
    columns: the order of columns; None for that of the pieces
    function: what is taken of every value then: "-exp(x)", "ln(-x)", or nothing
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    shift: float = 0.0
    columns: Columns | None = None
    function: Literal["", "-exp(x)", "ln(-x)"] = ""

    @property
    def by_row(self) -> bool:
        """Whether it consists of whole rows of the file."""
        return not (self.shift or self.columns or self.function) and all(piece.by_row for piece in self.pieces)

    def finished(self, values: np.ndarray) -> np.ndarray:
        """Some rows of the pieces, float32 [rows, cols] -> those of the tensor."""
        if self.columns is not None:
            values = self.columns.applied(values)
        if self.shift:
            values = values + np.float32(self.shift)
        if self.function:
            wide = values.astype(np.float64)
            with np.errstate(all="ignore"):  # what is not finite is refused where it is used
                values = -np.exp(wide) if self.function == "-exp(x)" else np.log(-wide)
        return np.ascontiguousarray(values, np.float32)


class DerivedSource:
    """A source with further tensors. Its other tensors are those of the source below it; see `Source`.

    A derived tensor has the layout of its pieces if they are whole rows of one layout; else it is float32.
    """

    def __init__(self, base: Source, derived: Mapping[str, Derived]) -> None:
        self.base, self.derived = base, derived
        own = {name: self._info_of(name, each) for name, each in derived.items()}
        self._tensors = MappingProxyType({**base.tensors, **own})

    @property
    def path(self) -> Path:
        """That of the source below."""
        return self.base.path

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the source below."""
        return self.base.files

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors of the source below, and the derived ones."""
        return self._tensors

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Those of the source below."""
        return self.base.metadata

    def _info_of(self, name: str, derived: Derived) -> TensorInfo:
        infos = [self.base.tensors[piece.name] for piece in derived.pieces]
        layouts, cols = {info.layout for info in infos}, derived.shape[-1]
        info = TensorInfo(name, derived.shape, "f32", 0)
        if derived.by_row and len(layouts) == 1 and layouts <= _BY_ROW:
            below = infos[0]
            return TensorInfo(name, derived.shape, below.layout, below.nbytes // max(below.rows, 1) * info.rows)
        return TensorInfo(name, derived.shape, "f32", 4 * cols * info.rows)

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedTensor:
        """See `Source.packed`."""
        if name not in self.derived:
            return self.base.packed(name, start, stop)
        info = self._tensors[name]
        stop = info.rows if stop is None else stop
        shape = info.shape if stop - start == info.rows else (stop - start, info.cols)
        if info.layout == "f32" and not self._is_stored(name):
            values = self._values(name, start, stop)
            return PackedTensor("f32", shape, {"data": values.view(np.uint8)})
        found = [self._stored(piece, low, high) for piece, low, high in self._pieces(name, start, stop)]
        if not found:
            return PackedTensor(info.layout, shape, self.base.packed(self.derived[name].pieces[0].name, 0, 0).parts)
        parts = found[0].keys()
        joined = {
            part: found[0][part] if len(found) == 1 else np.concatenate([f[part] for f in found]) for part in parts
        }
        return PackedTensor(info.layout, shape, joined)

    def _is_stored(self, name: str) -> bool:
        derived = self.derived[name]
        return derived.by_row and all(self.base.tensors[piece.name].layout == "f32" for piece in derived.pieces)

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[tuple[Piece, int, int]]:
        """The pieces that rows start..stop lie in, each with its own rows."""
        at = 0
        for piece in self.derived[name].pieces:
            low, high = max(start - at, 0), min(stop - at, piece.count)
            if low < high:
                yield piece, low, high
            at += piece.count

    def _stored(self, piece: Piece, low: int, high: int) -> dict[str, np.ndarray]:
        """Parts of rows low..high of a piece of whole rows."""
        first, last = piece.first + low * piece.step, piece.first + (high - 1) * piece.step + 1
        parts = self.base.packed(piece.name, first, last).parts
        return {part: np.ascontiguousarray(data[:: piece.step]) for part, data in parts.items()}

    def _values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a derived tensor: float32 [stop - start, cols]."""
        derived, found = self.derived[name], []
        for piece, low, high in self._pieces(name, start, stop):
            found.append(self._piece_values(piece, low, high))
        if not found:
            return np.zeros((0, derived.shape[-1]), np.float32)
        return derived.finished(np.concatenate(found) if len(found) > 1 else found[0])

    def _piece_values(self, piece: Piece, low: int, high: int) -> np.ndarray:
        at = slice(piece.first + low * piece.step, piece.first + (high - 1) * piece.step + 1, piece.step)
        if piece.matrix is not None:
            rows = self.base.tensors[piece.name].shape[-2]
            return self.base.rows(piece.name, piece.matrix * rows, (piece.matrix + 1) * rows)[:, at].T
        values = self.base.rows(piece.name, at.start, at.stop)[:: piece.step]
        return values if piece.columns is None else values[:, piece.columns[0] :: piece.columns[1]]

    def decode(self, packed: PackedTensor) -> np.ndarray:
        """See `Source.decode`."""
        if packed.layout == "f32":
            data = np.ascontiguousarray(packed.parts["data"])
            return data.view(np.float32).reshape(len(data), -1)
        return self.base.decode(packed)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Source.rows`."""
        if name not in self.derived:
            return self.base.rows(name, start, stop)
        if self._tensors[name].layout == "f32":
            return self._values(name, start, self._tensors[name].rows if stop is None else stop)
        return self.base.decode(self.packed(name, start, stop))

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> QuantTensor | None:
        """See `Source.codes`."""
        if name not in self.derived:
            return self.base.codes(name, start, stop)
        return None

    def input_rounding(self, name: str) -> InputRounding | None:
        """See `Source.input_rounding`. All pieces must round alike."""
        if name not in self.derived:
            return self.base.input_rounding(name)
        return self.base.input_rounding(self.derived[name].pieces[0].name)

    def extent(self, name: str) -> Extent | None:
        """See `Source.extent`."""
        if name not in self.derived:
            return self.base.extent(name)
        pieces, info = self.derived[name].pieces, self._tensors[name]
        if len(pieces) != 1 or pieces[0].step != 1 or not self.derived[name].by_row:
            return None
        below = self.base.extent(pieces[0].name)
        size = info.nbytes // max(info.rows, 1)
        return None if below is None else Extent(below.path, below.offset + pieces[0].first * size)


def with_derived(source: Source, derived: Mapping[str, Derived]) -> Source:
    """The source with derived tensors; the source itself if there are none, or if the file lacks pieces of one."""
    pieces = (piece.name for each in derived.values() for piece in each.pieces)
    if not derived or any(name not in source.tensors for name in pieces):
        return source
    return DerivedSource(source, derived)
