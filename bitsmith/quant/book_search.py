"""Search in the code books of IQ1, IQ2 and IQ3: by the C++ core, or in numpy.

A vector x with column weights w, coded by levels g at scale s, loses sum w x^2 + s (s norm - 2 cross), with
norm = sum w g^2 and cross = sum w x g. The best code at a scale has the smallest s (s norm - 2 cross). Where the number
of negative levels must be even and that of x is odd, the sign of the weight that loses least is flipped.

The numpy code computes both sums for all points at all scales that it tries, so it is slow. Nearest codes at given
scales are the same from both, to the bit. Scales are not: the core scans its books at few scales, with losses that are
rounded to bytes (csrc/quantize/book_scan.h), and loses up to 3 % more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from array_api_compat import is_numpy_array

from bitsmith.quant.formats.base import Params
from bitsmith.quant.grid import Array
from bitsmith.quant.scale_search import LARGEST, column_weights, f16
from bitsmith.quant.vector_grid import VECTOR, CodeBook, VectorGrid
from bitsmith.system.core import core

if TYPE_CHECKING:
    from bitsmith.quant.formats.code_books import CodeBookFormat
    from bitsmith.system._core import BookQuantizer

SUPER = 256
_TRIALS, _LOW, _STEP = 8, np.float32(0.62), np.float32(1.15)  # scales tried for a block, around what its norm suggests
_SHARES = tuple(np.float32(share) for share in (0.86, 0.92, 0.96, 1.0, 1.04, 1.1))  # of the largest scale, for d
_ROUNDS, _REACH = 2, 2
_CHUNK = 1 << 22  # sums computed at once
_ZERO = np.float32(0.0)


def book_quantizer(format: CodeBookFormat, isa: str = "") -> BookQuantizer | None:
    """The core's search for a format; None without a core. isa: "" is the best; results do not depend on it"""
    return _quantizer(format.name, isa)


@lru_cache
def _quantizer(name: str, isa: str = "") -> BookQuantizer | None:
    module = core()
    found: BookQuantizer | None = None if module is None else module.BookQuantizer(name, isa=isa)
    return found


def round_vectors(format: CodeBookFormat, w: Array, importance: Array | None, *, isa: str = "") -> tuple[Array, Params]:
    """Parameters and codes int32 [rows, cols / 8] of `w`, float32 [rows, cols]; torch tensors are copied to the CPU."""
    if not is_numpy_array(w):
        return _on_cpu(format, w, importance)
    rows, cols = w.shape
    columns = column_weights(importance)
    params = {name: np.empty(shape, dtype) for name, (shape, dtype) in format.params_layout(rows, cols).items()}
    codes = np.empty((rows, cols // VECTOR), np.int32)
    chosen = _quantizer(format.name, isa)
    if chosen is None:
        return round_reference(format, w, columns)
    shifts = {"shifts": params["shifts"]} if format.shifts else {}
    w = np.require(w, np.float32, ["C", "A"])
    chosen.round(w, columns=columns, codes=codes, d=params["d"], scales=params["scales"], **shifts)
    return codes, params


def _on_cpu(format: CodeBookFormat, w: Array, importance: Array | None) -> tuple[Array, Params]:
    import torch

    columns = None if importance is None else importance.cpu().numpy()
    codes, params = round_vectors(format, w.cpu().numpy(), columns)
    return torch.from_numpy(codes).to(w.device), {
        name: torch.from_numpy(np.asarray(values)).to(w.device) for name, values in params.items()
    }


def nearest_codes(grid: VectorGrid, w: Array, columns: Array | None) -> Array:
    """See `VectorGrid.nearest`."""
    if not is_numpy_array(w):
        import torch

        on_cpu = VectorGrid(
            grid.book,
            grid.scale.cpu().numpy(),
            None if grid.shift is None else grid.shift.cpu().numpy(),
            grid.block,
        )
        found = nearest_codes(on_cpu, w.cpu().numpy(), None if columns is None else columns.cpu().numpy())
        return torch.from_numpy(found).to(w.device)
    shifts = None if grid.shift is None else np.ascontiguousarray(grid.shift < 0).astype(np.uint8)
    chosen = _quantizer(grid.book.name)
    scale = np.require(grid.scale, np.float32, ["C", "A"])
    w = np.require(w, np.float32, ["C", "A"])
    if chosen is None:
        return nearest_reference(grid.book, w, columns, scale, shifts)
    codes = np.empty((w.shape[0], w.shape[1] // VECTOR), np.int32)
    chosen.nearest(w, columns=columns, block=w.shape[1] // scale.shape[1], scales=scale, shifts=shifts, codes=codes)
    return codes


@dataclass(frozen=True)
class _Sums:
    """Sums of one choice of points for n vectors: cross, norm [n, points]."""

    cross: np.ndarray
    norm: np.ndarray

    def best(self, scale: np.ndarray) -> _Found:
        """The best point of each vector at its scale, [n]."""
        s = scale[:, None]
        value = s * (s * self.norm - (self.cross + self.cross))
        index = np.argmin(value, axis=1)
        at = np.arange(len(index)), index
        return _Found(value[at], self.cross[at], self.norm[at], index.astype(np.int32))


@dataclass(frozen=True)
class _Found:
    """What the best codes lose, less a constant, their sums, and their point numbers (or a side): [n] each.

    flipped: half of the code in which a sign is flipped: 0 none, 1 the first, 2 the second
    """

    value: np.ndarray
    cross: np.ndarray
    norm: np.ndarray
    code: np.ndarray
    flipped: np.ndarray | int = 0

    def or_less(self, other: _Found) -> _Found:
        """The other where it loses less."""
        take = other.value < self.value
        mine, its = np.broadcast_to(self.flipped, take.shape), np.broadcast_to(other.flipped, take.shape)
        return _Found(
            np.where(take, other.value, self.value),
            np.where(take, other.cross, self.cross),
            np.where(take, other.norm, self.norm),
            np.where(take, other.code, self.code),
            np.where(take, its, mine),
        )


class _Vectors:
    """All sums of n vectors. x, weight: [n, 8]; weight may be None."""

    def __init__(self, book: CodeBook, shifted: bool, x: np.ndarray, weight: np.ndarray | None) -> None:
        self.book, self.sides = book, shifted
        self.signs = x < 0 if book.signed else np.zeros(x.shape, bool)
        size = np.abs(x) if book.signed else x
        self.product = size if weight is None else size * weight
        self.odd = (self.signs.sum(axis=1) & 1).astype(bool) if book.even else np.zeros(len(x), bool)
        self.plain, self.flips = [], []
        width = VECTOR // book.halves
        for half in range(book.halves):
            at = slice(half * width, (half + 1) * width)
            ones = np.ones((1, width), np.float32) if weight is None else weight[:, at]
            for levels in self._levels():
                cross, norm = _total(self.product[:, at], levels), _total(ones, levels * levels)
                norm = np.broadcast_to(norm, cross.shape)
                if book.even:
                    flipped = cross - np.float32(2.0) * _least(self.product[:, at], levels)
                    self.flips.append(_Sums(flipped, norm))
                self.plain.append(_Sums(cross, norm))
        if book.even and book.halves == 1:
            cross = np.where(self.odd[:, None], self.flips[0].cross, self.plain[0].cross)
            self.plain[0] = _Sums(cross, self.plain[0].norm)
        if book.shifted:
            first, second = self.plain
            cross = np.concatenate([first.cross, second.cross], axis=1)
            self.plain = [_Sums(cross, np.concatenate([first.norm, second.norm], axis=1))]

    def _levels(self) -> list[np.ndarray]:
        table = self.book.table()
        if self.book.shifted or self.sides:
            return [table + np.float32(0.125), table - np.float32(0.125)]
        return [table]

    def best(self, scale: np.ndarray, side: np.ndarray | int = 0) -> _Found:
        """The best code of each vector at its scale, [n]. side: of IQ1_S."""
        if self.sides:
            first, second = (sums.best(scale) for sums in self.plain)
            return _choose(np.broadcast_to(np.asarray(side) == 1, scale.shape), second, first)
        if self.book.halves == 1:
            return self.plain[0].best(scale)
        a, b = (sums.best(scale) for sums in self.plain)
        plain = self._both(a, b, 0)
        if not self.book.even:
            return plain
        flipped_a, flipped_b = (sums.best(scale) for sums in self.flips)
        flipped = self._both(flipped_a, b, 1).or_less(self._both(a, flipped_b, 2))
        return _choose(self.odd, flipped, plain)

    def _both(self, a: _Found, b: _Found, flipped: int) -> _Found:
        code = a.code | (b.code << self.book.index_bits)
        marks = np.full(len(code), flipped)
        return _Found(a.value + b.value, a.cross + b.cross, a.norm + b.norm, code, marks)

    def codes(self, found: _Found) -> np.ndarray:
        """Codes with their signs: int32 [n]."""
        if not self.book.signed:
            return found.code
        signs = self.signs.copy()
        width = VECTOR // self.book.halves
        for half in range(self.book.halves if self.book.even else 0):
            marked = self.odd if self.book.halves == 1 else self.odd & (np.asarray(found.flipped) == half + 1)
            at = slice(half * width, (half + 1) * width)
            index = (found.code >> (half * self.book.index_bits)) & ((1 << self.book.index_bits) - 1)
            cheapest = half * width + np.argmin(self.product[:, at] * self.book.table()[index], axis=1)
            signs[marked, cheapest[marked]] ^= True
        bits = np.packbits(signs, axis=1, bitorder="little")[:, 0].astype(np.int32)
        return np.asarray(found.code | (bits << self.book.point_bits))


def _choose(take: np.ndarray, yes: _Found, no: _Found) -> _Found:
    marks = np.broadcast_to(yes.flipped, take.shape), np.broadcast_to(no.flipped, take.shape)
    return _Found(
        np.where(take, yes.value, no.value),
        np.where(take, yes.cross, no.cross),
        np.where(take, yes.norm, no.norm),
        np.where(take, yes.code, no.code),
        np.where(take, *marks),
    )


def _terms(product: np.ndarray, levels: np.ndarray) -> list[np.ndarray]:
    """Terms of the four fields of all points: product [n, 4 or 8], levels [points, 4 or 8] -> four times pairs."""
    return [product[:, i, None] * levels[:, i] for i in range(levels.shape[1])]


def _total(product: np.ndarray, levels: np.ndarray) -> np.ndarray:
    terms = _terms(product, levels)
    if len(terms) == VECTOR:
        terms = [terms[2 * i] + terms[2 * i + 1] for i in range(4)]
    return np.asarray((terms[0] + terms[1]) + (terms[2] + terms[3]))


def _least(product: np.ndarray, levels: np.ndarray) -> np.ndarray:
    least = np.minimum.reduce(_terms(product, levels))
    return np.asarray(least)


def nearest_reference(
    book: CodeBook, w: np.ndarray, columns: np.ndarray | None, scale: np.ndarray, shifts: np.ndarray | None
) -> np.ndarray:
    """`nearest_codes` in numpy. scale: [rows, blocks]; shifts: the same, 1 where levels are shifted by -1/8, or None"""
    rows, cols = w.shape
    codes = np.empty((rows, cols // VECTOR), np.int32)
    step = max(1, _CHUNK // (cols // VECTOR << book.index_bits))
    each = cols // VECTOR
    for start in range(0, rows, step):
        part = np.clip(w[start : start + step], -LARGEST, LARGEST) + _ZERO
        weight = None if columns is None else np.tile(columns.reshape(-1, VECTOR), (len(part), 1))
        vectors = _Vectors(book, shifts is not None, part.reshape(-1, VECTOR), weight)
        by_vector = np.repeat(scale[start : start + step], each // scale.shape[1], axis=1).reshape(-1)
        side: np.ndarray | int = 0
        if shifts is not None:
            side = np.repeat(shifts[start : start + step], each // shifts.shape[1], axis=1).reshape(-1)
        codes[start : start + step] = vectors.codes(vectors.best(by_vector, side)).reshape(-1, each)
    return codes


def round_reference(format: CodeBookFormat, w: np.ndarray, columns: np.ndarray | None) -> tuple[Array, Params]:
    """A slower and fuller search than the core's `round_vectors`. columns: [cols] weights, or None"""
    rows, cols = w.shape
    across = cols // SUPER
    supers = (np.clip(w, -LARGEST, LARGEST) + _ZERO).reshape(-1, SUPER)
    step = max(1, _CHUNK // (SUPER // VECTOR << format.book.index_bits))
    found: list[dict[str, np.ndarray]] = []
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for start in range(0, len(supers), step):
            part = supers[start : start + step]
            weight = None
            if columns is not None:
                weight = columns.reshape(across, SUPER)[np.arange(start, start + len(part)) % across]
            found.append(_SuperBlocks(format, part, weight).search())
    joined = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    codes = joined.pop("codes").reshape(rows, -1)
    layout = format.params_layout(rows, cols)
    return codes, {name: joined[name].astype(dtype).reshape(shape) for name, (shape, dtype) in layout.items()}


@dataclass
class _State:
    """d [n]; q, lost [n, blocks]"""

    d: np.ndarray
    q: np.ndarray
    lost: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def total(self) -> np.ndarray:
        """Sum of the blocks' losses, in order: [n]."""
        return _in_order(self.lost)

    def better(self, other: _State) -> _State:
        take = other.total < self.total
        return _State(
            np.where(take, other.d, self.d),
            np.where(take[:, None], other.q, self.q),
            np.where(take[:, None], other.lost, self.lost),
        )


def _in_order(terms: np.ndarray) -> np.ndarray:
    """Sum over the last axis, from left to right, in float32."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for i in range(terms.shape[-1]):
        total = total + terms[..., i]
    return total


def _inverse(a: np.ndarray) -> np.ndarray:
    alive = np.abs(a) > np.float32(1e-37)
    return np.where(alive, np.float32(1.0) / np.where(alive, a, np.float32(1.0)), _ZERO)


class _SuperBlocks:
    """n super-blocks. x, weight: [n, 256]; weight may be None."""

    def __init__(self, format: CodeBookFormat, x: np.ndarray, weight: np.ndarray | None) -> None:
        self.format, self.x, self.weight = format, x, weight
        self.blocks = SUPER // format.block
        self.each = format.block // VECTOR
        vectors = None if weight is None else weight.reshape(-1, VECTOR)
        self.vectors = _Vectors(format.book, format.shifts, x.reshape(-1, VECTOR), vectors)

    def search(self) -> dict[str, np.ndarray]:
        """Parameters and codes."""
        best = self._start(self._block_scales())
        for _ in range(_ROUNDS):
            best = self._refit(self._descend(best))
        scale = self._scale(best)
        side = self._at(scale).code
        found = self.vectors.best(self._by_vector(scale), self._by_vector(side))
        out = {"d": best.d.astype(np.float16), "scales": best.q, "codes": self.vectors.codes(found)}
        return out | ({"shifts": side} if self.format.shifts else {})

    def _by_vector(self, blocks: np.ndarray) -> np.ndarray:
        return np.repeat(blocks, self.each, axis=1).reshape(-1)

    def _at(self, scale: np.ndarray) -> _Found:
        """What blocks lose at scales [n, blocks]; `code` is the side of their shift."""
        first = self._on_side(scale, 0)
        return first.or_less(self._on_side(scale, 1)) if self.format.shifts else first

    def _on_side(self, scale: np.ndarray, side: int) -> _Found:
        found = self.vectors.best(self._by_vector(scale), side)
        shape = (-1, self.blocks, self.each)
        sums = [_in_order(each.reshape(shape)) for each in (found.value, found.cross, found.norm)]
        return _Found(sums[0], sums[1], sums[2], np.full(scale.shape, side, np.int32))

    def _block_scales(self) -> np.ndarray:
        blocks = self.x.reshape(-1, self.blocks, self.format.block)
        weight = np.ones_like(blocks) if self.weight is None else self.weight.reshape(blocks.shape)
        energy, mass = _in_order(weight * (blocks * blocks)), _in_order(weight)
        guess = np.sqrt(energy / mass) / np.float32(self.format.typical)
        alive = guess > np.float32(1e-30)
        scale = _LOW * guess
        best, least = np.zeros_like(guess), np.zeros_like(guess)
        cross, norm = np.zeros_like(guess), np.zeros_like(guess)
        for _ in range(_TRIALS):
            here = self._at(scale)
            take = (here.value < least) & alive
            best, least = np.where(take, scale, best), np.where(take, here.value, least)
            cross, norm = np.where(take, here.cross, cross), np.where(take, here.norm, norm)
            scale = scale * _STEP
        for _ in range(2):
            refitted = np.maximum(cross, _ZERO) * _inverse(norm)
            here = self._at(refitted)
            take = (here.value < least) & alive
            best, least = np.where(take, refitted, best), np.where(take, here.value, least)
            cross, norm = here.cross, here.norm
            alive = take
        return np.asarray(best)

    def _factor(self, q: np.ndarray) -> np.ndarray:
        return np.asarray(np.float32(self.format.unit) * (np.float32(2.0) * q.astype(np.float32) + np.float32(1.0)))

    def _scale(self, s: _State) -> np.ndarray:
        return np.asarray(s.d[:, None] * self._factor(s.q))

    def _start(self, scale: np.ndarray) -> _State:
        largest = scale.max(axis=1)
        best = None
        for share in _SHARES:
            top = self._factor(np.array(self.format.top)) * share
            d = f16(largest / top)
            step = _inverse(d * np.float32(2.0 * self.format.unit))
            q = np.clip(np.rint(scale * step[:, None] - np.float32(0.5)), 0.0, self.format.top).astype(np.int32)
            state = self._with_loss(_State(d, q))
            best = state if best is None else best.better(state)
        assert best is not None
        alive = largest > 0
        return _State(np.where(alive, best.d, _ZERO), best.q * alive[:, None], best.lost * alive[:, None])

    def _with_loss(self, s: _State) -> _State:
        return _State(s.d, s.q, self._at(self._scale(s)).value)

    def _descend(self, s: _State) -> _State:
        q, lost = s.q, s.lost
        for step in range(-_REACH, _REACH + 1):
            tried = s.q + step
            if step == 0:
                continue
            allowed = (tried >= 0) & (tried <= self.format.top) & (s.d != 0)[:, None]
            tried = np.clip(tried, 0, self.format.top)
            new = self._at(s.d[:, None] * self._factor(tried)).value
            take = (new < lost) & allowed
            q, lost = np.where(take, tried, q), np.where(take, new, lost)
        return _State(s.d, q, lost)

    def _refit(self, s: _State) -> _State:
        by = self._factor(s.q)
        found = self._at(self._scale(s))
        cross, norm = _in_order(by * found.cross), _in_order(by * by * found.norm)
        d = f16(np.maximum(cross, _ZERO) * _inverse(norm))
        return s.better(self._with_loss(_State(d, s.q)))
