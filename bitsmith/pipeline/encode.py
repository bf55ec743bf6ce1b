"""From the rows of one chunk to stored bytes: checks, rounds, packs, and computes the error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bitsmith.containers.base import Codec, Source
from bitsmith.containers.bnb_codecs import FourBitCodec
from bitsmith.containers.core_parts import encode_parts
from bitsmith.containers.floats import WRITTEN_FLOATS, decode_numbers, encode_float
from bitsmith.containers.gguf.blocks_simple import BlockCodec
from bitsmith.containers.gguf.core_blocks import encode_stored
from bitsmith.errors import TensorError
from bitsmith.models.arch.names import permute_rows, unpermute_rows
from bitsmith.pipeline.chunks import CHUNK_WEIGHTS, Chunk
from bitsmith.quant.formats.base import NeedsExtent, Settled
from bitsmith.quant.formats.nested import Nested
from bitsmith.quant.lattice import has_lattice, kept, probe, probed_rows, recover
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.scale_search import tree_sum
from bitsmith.quant.tensor import PackedTensor, QuantTensor
from bitsmith.recipe.plan import PlannedTensor, RowOrder
from bitsmith.recipe.rounded_rows import RoundedRows

_LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class Encoded:
    """An encoded chunk.

    parts: stored bytes by part
    squared_error, squared_weight: sums over the chunk, float64
    kept: whether the chunk lies on its format's grid, so that its weights are kept exactly, see `quant.lattice`
    """

    parts: dict[str, np.ndarray]
    squared_error: float
    squared_weight: float
    kept: bool = False


def encode_chunk(source: Source, chunk: Chunk, packed: PackedTensor | None) -> Encoded:
    """Check, round and pack the rows of one chunk. packed: the rows as stored in the source; None for a constant"""
    planned = chunk.planned
    if planned.constant is not None:
        data = encode_float(planned.info.layout, planned.constant.reshape(1, -1))
        return Encoded({"data": data}, 0.0, 0.0)
    assert planned.source is not None
    assert packed is not None
    if planned.copied:
        return Encoded(dict(packed.parts), 0.0, 0.0)
    encoded = None if planned.on_grid else _encode_by_core(chunk, packed)
    if encoded is not None:
        return encoded
    try:
        w = source.decode(packed)
    except TensorError as error:
        raise TensorError(f"{source.path}: {planned.source}: {error.message}") from error
    _check_finite(planned.source, w, chunk.start)
    if planned.verbatim:
        return Encoded(dict(packed.parts), 0.0, sum_of_squares(w))
    if planned.order is not None:
        w = _reordered(planned.order, w, chunk)
    try:
        at = _at(planned, slice(chunk.start, chunk.stop))
        parts, values = _kept_rows(at, w, chunk.importance) if planned.on_grid else encode_rows(at, w, chunk.importance)
    except TensorError as error:
        raise error.at(planned.source) from error
    _check_decoded(planned, values, w)
    return Encoded(parts, sum_of_squares(values - w), sum_of_squares(w), planned.on_grid and kept(values, w))


def encode_rounded(chunk: Chunk, rounded: RoundedRows) -> Encoded:
    """Pack the rows of `chunk`, a part of `rounded`, whose values a calibrated method chose."""
    planned = chunk.planned
    rows = slice(chunk.start - rounded.start, chunk.stop - rounded.start)
    w = rounded.weight[rows]
    try:
        if rounded.tensor is None:
            wanted = w if planned.order is None else _reordered(planned.order, w, chunk)
            data = encode_float(planned.info.layout, wanted)
            parts, values = {"data": data}, decode_numbers(planned.info.layout, data)
        else:
            parts, values, wanted = _pack_codes(chunk, rounded.tensor, rows), rounded.tensor.rows(rows).values(), w
        _check_decoded(planned, values, wanted)
    except TensorError as error:
        raise error.at(planned.source) from error
    same = rounded.tensor is not None and kept(values, wanted)
    return Encoded(parts, sum_of_squares(values - wanted), sum_of_squares(wanted), same)


def _pack_codes(chunk: Chunk, tensor: QuantTensor, rows: slice) -> dict[str, np.ndarray]:
    """Stored parts of some rows of codes, in the output's row order."""
    planned, part = chunk.planned, tensor.rows(rows)
    assert planned.codec is not None
    if planned.order is not None:
        order = planned.order
        params = {name: _reordered(order, values, chunk) for name, values in part.params.items()}
        part = QuantTensor(part.format, _reordered(order, part.codes, chunk), params)
    return dict(planned.codec.encode(part))


def prepared(source: Source, planned: PlannedTensor, importance: np.ndarray | None = None) -> PlannedTensor:
    """The same tensor, and whether it seems to lie on its format's grid; a few rows are read for this.

    A format that must know the whole tensor gets what it needs from a first pass over the rows.
    importance: float32 [matrices, cols], see `Format.fit`; None for none
    """
    if planned.source is None or planned.copied or planned.verbatim:
        return planned
    if isinstance(planned.format, NeedsExtent):
        low, high = np.inf, -np.inf
        for name in planned.together or (planned.source,):
            for _, w in _slabs(source, name):
                low, high = min(low, float(w.min())), max(high, float(w.max()))
        return replace(planned, format=planned.format.with_extent(low, high))
    if isinstance(planned.format, Settled):
        return _settled(source, planned, planned.format, importance)
    return replace(planned, on_grid=True) if _on_grid(source, planned) else planned


def _on_grid(source: Source, planned: PlannedTensor) -> bool:
    """Whether some rows of a tensor lie on the grid of its format."""
    if planned.source is None or planned.format is None or not has_lattice(planned.format):
        return False
    rows = [source.rows(planned.source, row, row + 1) for row in probed_rows(planned.info.rows)]
    return bool(rows) and probe(np.concatenate(rows), planned.format)


def _kept_rows(
    planned: PlannedTensor, w: np.ndarray, importance: np.ndarray | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same as `encode_rows`, with the codes of rows that lie on the grid; the others are rounded."""
    assert planned.format is not None
    assert planned.codec is not None
    tensor, found = recover(w, planned.format)
    if not found.all():
        codes, params = nearest(w[~found], planned.format, importance)
        tensor.codes[~found] = codes
        for name, values in params.items():
            tensor.params[name][~found] = values
    return planned.codec.encode(tensor), tensor.values()


def _settled(source: Source, planned: PlannedTensor, format: Settled, importance: np.ndarray | None) -> PlannedTensor:
    """The tensor with the scales of all its rows, in the order of the output."""
    assert planned.format is not None
    assert planned.source is not None
    each = planned.info.rows // (1 if importance is None else len(importance))
    found = []
    for start, w in _slabs(source, planned.source, each):
        columns = None if importance is None else importance[start // each]
        found.append(planned.format.fit(w, columns))
    free = {name: np.concatenate([params[name] for params in found]) for name in found[0]}
    if planned.order is not None:
        whole = Chunk(planned, 0, planned.info.rows)
        free = {name: _reordered(planned.order, values, whole) for name, values in free.items()}
    return replace(planned, format=format.settled_on(format.settled(free)))


def _slabs(source: Source, name: str, together: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 [rows, cols]) of all rows of a tensor, in the source's order.

    together: slabs do not cross a multiple of it; 0: any
    """
    info = source.tensors[name]
    step = max(1, CHUNK_WEIGHTS // max(info.cols, 1))
    together = together or info.rows
    for first in range(0, info.rows, together):
        for start in range(first, min(first + together, info.rows), step):
            w = source.rows(name, start, min(start + step, first + together, info.rows))
            _check_finite(name, w, start)
            yield start, w


def _windowed_codec(chunk: Chunk) -> Codec | None:
    """The codec of a chunk's tensor; a format that knows the scales of all rows gets those of the chunk."""
    planned = _at(chunk.planned, slice(chunk.start, chunk.stop))
    if isinstance(planned.codec, FourBitCodec) and isinstance(planned.format, Nested):
        return replace(planned.codec, format=planned.format)
    return planned.codec


def _at(planned: PlannedTensor, rows: slice) -> PlannedTensor:
    """The tensor for some of its rows: a format that knows the scales of all rows gets those of these."""
    format = planned.format
    if not isinstance(format, Nested) or format.settled_params is None:
        return planned
    params = {name: values[rows] for name, values in format.settled_params.items()}
    return replace(planned, format=format.settled_on(params))


def _encode_by_core(chunk: Chunk, packed: PackedTensor) -> Encoded | None:
    """`encode_chunk` in one call of the C++ core. Returns None if the core cannot do it, see `encode_stored`."""
    planned = chunk.planned
    if planned.verbatim or planned.codec is None or packed.layout not in WRITTEN_FLOATS:
        return None
    by_absmax = chunk.importance is None and not isinstance(planned.codec, BlockCodec)
    if not by_absmax and not isinstance(planned.codec, BlockCodec):
        return None
    order = None
    if planned.order is not None:
        order = _reordered(planned.order, np.arange(chunk.stop - chunk.start).reshape(-1, 1), chunk)[:, 0]
    if by_absmax:
        found = encode_parts(_windowed_codec(chunk), packed.layout, packed.parts["data"], order=order)
        return None if found is None else Encoded(found.parts, found.squared_error, found.squared_weight)
    try:
        blocks = encode_stored(
            planned.codec, packed.layout, packed.parts["data"], importance=chunk.importance, order=order
        )
    except TensorError as error:
        raise error.at(planned.source) from error
    if blocks is None:
        return None
    return Encoded({"data": blocks.data}, blocks.squared_error, blocks.squared_weight)


def _reordered(order: RowOrder, w: np.ndarray, chunk: Chunk) -> np.ndarray:
    """Reorder whole heads of a q or k weight (or of its codes), or its whole bias: [1, rows of the weight]."""
    info = chunk.planned.info
    reorder = permute_rows if order.interleave else unpermute_rows
    if len(info.shape) == 1:
        return reorder(w.T, order.heads).T
    return reorder(w, order.heads * (chunk.stop - chunk.start) // info.rows)


def encode_rows(
    planned: PlannedTensor, w: np.ndarray, importance: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stored parts of whole rows `w`, float32 [rows, cols], and their decoded float32 values.

    importance: [cols] float32 or None, see `Format.fit`
    """
    if planned.format is None or planned.codec is None:
        data = encode_float(planned.info.layout, w)
        return {"data": data}, decode_numbers(planned.info.layout, data)
    codes, params = nearest(w, planned.format, importance)
    tensor = QuantTensor(planned.format, codes, params)
    return planned.codec.encode(tensor), tensor.values()


def _check_decoded(planned: PlannedTensor, values: np.ndarray, w: np.ndarray) -> None:
    if not np.isfinite(values).all() or _clipped(w, values):
        raise TensorError(
            f"{planned.source}: some weights overflow {planned.info.layout} (the largest is {np.abs(w).max():.6g}); "
            f"give it a wider type with --rule='^{planned.info.name}$=bf16', or f32."
        )


def _check_finite(name: str, w: np.ndarray, first_row: int) -> None:
    finite = np.isfinite(w)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    raise TensorError(
        f"{name}: {w[row, column]} at row {first_row + row}, column {column}; weights must be finite. "
        "The checkpoint is damaged: download it again or ask its author."
    )


def _clipped(w: np.ndarray, values: np.ndarray) -> bool:
    """Whether a row's largest weight is beyond float16 and decodes to less than half, because its scale saturated.

    w, values: float32 [rows, cols]
    """
    largest = np.maximum(w.max(axis=1, initial=0), -w.min(axis=1, initial=0))
    huge = largest > _LARGEST_F16
    return bool(huge.any()) and bool((np.abs(values[huge]).max(axis=1) < largest[huge] / 2).any())


def sum_of_squares(x: np.ndarray) -> float:
    """Sum of squares in float64. As in the C++ core, sixteen running sums are added by halves at the end."""
    flat = x.reshape(-1)
    whole = len(flat) // 16 * 16
    sums = np.square(flat[:whole].reshape(-1, 16), dtype=np.float64).sum(axis=0)
    sums[: len(flat) - whole] += np.square(flat[whole:], dtype=np.float64)
    return float(tree_sum(sums))
