"""IQ1, IQ2 and IQ3: the core's search beside numpy's, codes are the nearest, edges of what weights may be."""

import itertools

import numpy as np
import pytest

from bitsmith.errors import TensorError, UnsupportedError
from bitsmith.quant.book_search import book_quantizer, nearest_reference, round_reference, round_vectors
from bitsmith.quant.formats.base import Params
from bitsmith.quant.formats.code_books import CODE_BOOKS, CodeBookFormat
from bitsmith.quant.scale_search import column_weights
from bitsmith.system.core import core

NAMES = [format.name for format in CODE_BOOKS]
ISAS = [] if core() is None else core().isas()


def hard(rows: int = 3) -> np.ndarray:
    """Heavy tails, zeros, one huge weight, many ties: float32 [rows, 512]."""
    w = (0.02 * np.random.default_rng(0).standard_t(3, (rows, 512))).astype(np.float32)
    w[0, :256] = 0
    w[0, 300:340] = 0
    w[1, 5] = 3
    w[2] = np.round(w[2] * 50) / 50
    return w


def importance() -> np.ndarray:
    found = np.random.default_rng(1).gamma(1.0, 1.0, 512).astype(np.float32)
    found[7] = 0
    return found


def loss(format: CodeBookFormat, w: np.ndarray, found: tuple[np.ndarray, Params], weight: np.ndarray | None) -> float:
    """Weighted squared error of codes and parameters."""
    values = np.asarray(format.grid(found[1]).values(found[0]), np.float64)
    return float((np.square(values - w) * (1.0 if weight is None else weight)).sum())


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", CODE_BOOKS, ids=NAMES)
def test_instruction_sets_agree(format: CodeBookFormat, isa: str, weighted: bool) -> None:
    w, given = hard(), importance() if weighted else None
    codes, params = round_vectors(format, w, given, isa="generic")
    found, its = round_vectors(format, w, given, isa=isa)
    assert np.array_equal(found, codes)
    assert all(np.array_equal(its[name], params[name]) for name in params)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("format", CODE_BOOKS, ids=NAMES)
def test_the_core_loses_hardly_more_than_the_full_search(format: CodeBookFormat, weighted: bool) -> None:
    """numpy tries more scales, and all points at each."""
    rng = np.random.default_rng(5)
    w = (0.02 * rng.standard_normal((16, 512))).astype(np.float32)
    given = importance() if weighted else None
    columns = column_weights(given)
    ours = loss(format, w, round_vectors(format, w, given), columns)
    full = loss(format, w, round_reference(format, w, columns), columns)
    assert ours <= full * (1.05 if format.book.halves == 2 else 1.03)


@pytest.mark.parametrize("format", [format for format in CODE_BOOKS if format.book.signed], ids=NAMES[2:])
def test_rows_of_one_magnitude_are_kept(format: CodeBookFormat) -> None:
    """All weights on the smallest levels, far from what the norm suggests."""
    w = np.where(np.random.default_rng(3).random((4, 256)) < 0.5, -1, 1).astype(np.float32)
    w[0] = 0.01
    w[1, 1::2] *= 1e-3
    values = np.asarray(format.grid(format.nearest(w)[1]).values(format.nearest(w)[0]))
    assert np.square(values[0] - w[0]).sum() < 1e-3 * np.square(w[0]).sum()
    if not format.book.even:
        assert np.square(values - w)[2:].sum() < 1e-3 * np.square(w[2:]).sum()


@pytest.mark.parametrize("columns", [None, np.exp(np.random.default_rng(4).standard_normal(512)).astype(np.float32)])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", CODE_BOOKS, ids=NAMES)
def test_nearest_codes_equal_numpys(format: CodeBookFormat, isa: str, columns: np.ndarray | None) -> None:
    w = hard()
    grid = format.grid(format.nearest(w)[1])
    shifts = None if grid.shift is None else (np.asarray(grid.shift) < 0).astype(np.uint8)
    chosen = book_quantizer(format, isa)
    assert chosen is not None
    codes = np.empty((3, 64), np.int32)
    scales = np.ascontiguousarray(grid.scale)
    chosen.nearest(w, columns=columns, block=format.block, scales=scales, shifts=shifts, codes=codes)
    assert np.array_equal(codes, nearest_reference(grid.book, w, columns, scales, shifts))


@pytest.mark.parametrize("format", CODE_BOOKS, ids=NAMES)
def test_no_code_is_nearer(format: CodeBookFormat) -> None:
    """Against all codes of a vector, weighted and plain; scales as they were fitted."""
    rng = np.random.default_rng(2)
    w = rng.standard_normal((1, 256)).astype(np.float32)
    book = format.book
    points = np.arange(1 << book.point_bits if book.halves == 1 else 1 << 12, dtype=np.int32)
    tops = range(1 << (book.bits - book.point_bits))
    if book.even:
        tops = (signs for signs in range(256) if bin(signs).count("1") % 2 == 0)
    for columns in (None, np.exp(rng.standard_normal(256)).astype(np.float32)):
        _, params = format.nearest(w, columns)
        grid = format.grid(params)
        weight = np.ones(256, np.float32) if columns is None else column_weights(columns)
        codes = grid.nearest(w, None if columns is None else weight)
        errors = (np.square(grid.values(codes) - w) * weight).reshape(-1, 8).sum(1)
        scale = grid.scale[0, 0]
        for top in itertools.islice(tops, 24):  # vector 0 alone
            levels = book.levels(points | np.int32(top << book.point_bits))
            if grid.shift is not None:
                levels = levels + grid.shift[0, 0]
            tried = (np.square(levels * scale - w[0, :8]) * weight[:8]).sum(1)
            assert errors[0] <= tried.min() * (1 + 1e-5)


@pytest.mark.parametrize("format", CODE_BOOKS, ids=NAMES)
def test_signs_of_even_books_are_even(format: CodeBookFormat) -> None:
    codes, params = format.nearest(hard())
    values = format.grid(params).values(codes)
    assert np.isfinite(values).all()
    assert not values[0, :256].any()
    if format.book.even:
        signs = codes >> format.book.point_bits
        assert not (np.bitwise_count(signs.astype(np.uint32)) % 2).any()


@pytest.mark.parametrize("format", CODE_BOOKS, ids=NAMES)
def test_importance_of_zeros_counts_as_none(format: CodeBookFormat) -> None:
    w = hard()
    one, two = format.nearest(w), format.nearest(w, np.zeros(512, np.float32))
    assert np.array_equal(one[0], two[0])
    with pytest.raises(TensorError, match="importance"):
        format.nearest(w, np.full(512, -1, np.float32))


@pytest.mark.parametrize("format", CODE_BOOKS, ids=NAMES)
def test_rows_that_no_block_divides(format: CodeBookFormat) -> None:
    with pytest.raises(UnsupportedError, match="divides by 256"):
        format.nearest(np.ones((1, 192), np.float32))
