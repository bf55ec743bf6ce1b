"""Kernels of GPTQ and coordinate descent in Triton: a block of columns, or one refit, is one launch for all rows.

A program takes ROWS rows through all columns of a block. What the columns before have moved stays in registers, and a
column's own sum is taken of it, so that nothing goes through memory between two columns. Everything is laid out by
columns, [cols, rows] float32, as in `column_grid`.

TRITON_INTERPRET=1 runs the kernels on a CPU, slowly: tests do.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds a small number, halves to even
_BFLOAT16 = tl.constexpr(2)
_FLOAT16 = tl.constexpr(1)


@triton.jit  # type: ignore[untyped-decorator]
def choose_columns(  # type: ignore[no-untyped-def]
    base,
    coupling,
    order,
    weights,
    error,
    levels,
    scale,
    offset,
    table,
    middles,
    diagonal,
    rows,
    first,
    count,
    block,
    low,
    high,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    DESCENDS: tl.constexpr,
    OFFSETS: tl.constexpr,
    BITS: tl.constexpr,
):
    """Choose the levels of `count` columns one after the other; each sees what those before it have moved.

    base: [count, rows]: sums over the columns outside of this block: GPTQ's feedback, or the slope of descent
    coupling: [count, count]: at [j, i] what column j takes of what column i < j has moved; zero elsewhere
    order: int32 [cols], the column at each place; descent goes from left to right, and does not read it
    error: [cols, rows]: by place for GPTQ's pass, which writes it; by column for descent, which changes it
    scale, offset: [blocks, rows]; diagonal: [cols] of the damped Hessian
    table: 2**BITS entries, those behind its own are infinity, as at the end of the middles between them; for BITS 0 the
        entries are the integers from low to high. Ties go to the lower entry
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = tl.arange(0, COLUMNS)
    moved = tl.zeros([COLUMNS, ROWS], tl.float32)
    zero = tl.zeros([ROWS], tl.float32)
    for j in range(0, count):
        column = first + j
        if not DESCENDS:
            column = tl.load(order + first + j)
        own = tl.load(coupling + j * count + at, mask=at < count, other=0.0)
        taken = tl.sum(own[:, None] * moved, axis=0)
        here = column.to(tl.int64) * rows + row
        w = tl.load(weights + here, mask=inside, other=0.0)
        outside = tl.load(base + j * rows + row, mask=inside, other=0.0)
        place = (first + j).to(tl.int64) * rows + row
        before = zero
        if DESCENDS:
            before = tl.load(error + place, mask=inside, other=0.0)
            target = tl.math.div_rn(outside + taken, zero + tl.load(diagonal + column)) + w - before
        else:
            target = outside + w + taken
        of_block = (column // block).to(tl.int64) * rows + row
        s = tl.load(scale + of_block, mask=inside, other=1.0)
        o = zero
        if OFFSETS:
            o = tl.load(offset + of_block, mask=inside, other=0.0)
            target = target - o
        target = tl.math.div_rn(target, tl.where(s != 0, s, float("inf")))
        if BITS == 0:
            level = tl.minimum(tl.maximum(tl.ceil(target - 0.5), low), high)
        else:
            code = zero.to(tl.int32)
            for i in tl.static_range(BITS):
                code += tl.where(target > tl.load(middles + code + ((1 << (BITS - 1 - i)) - 1)), 1 << (BITS - 1 - i), 0)
            level = tl.load(table + code)
        value = level * s
        if OFFSETS:
            value = value + o
        now = w - value
        tl.store(levels + here, level, mask=inside)
        tl.store(error + place, now, mask=inside)
        moved = tl.where(at[:, None] == j, (now - before)[None, :], moved)


@triton.jit  # type: ignore[untyped-decorator]
def moments(  # type: ignore[no-untyped-def]
    levels, slope, steep, out, rows, block, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    """The four sums of `descent.Quadratic` over the columns of a block: out [4, rows].

    levels, slope, steep: [block, rows]; steep: the block of the Hessian times levels
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first, sum, square, mass = _summed(levels, slope, steep, row, rows, block, COLUMNS, ROWS)
    inside = row < rows
    tl.store(out + row, first, mask=inside)
    tl.store(out + rows + row, sum, mask=inside)
    tl.store(out + 2 * rows + row, square, mask=inside)
    tl.store(out + 3 * rows + row, mass, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _summed(  # type: ignore[no-untyped-def]
    levels, slope, steep, row, rows, block, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    """first, sum, square, mass of some rows, see `moments`."""
    first = tl.zeros([ROWS], tl.float32)
    sum = tl.zeros([ROWS], tl.float32)
    square = tl.zeros([ROWS], tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    for start in range(0, block, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = column[:, None].to(tl.int64) * rows + row[None, :]
        inside = (column < block)[:, None] & (row < rows)[None, :]
        level = tl.load(levels + here, mask=inside, other=0.0)
        pull = tl.load(slope + here, mask=inside, other=0.0)
        rise = tl.load(steep + here, mask=inside, other=0.0)
        first += tl.sum(level * pull, axis=0)
        sum += tl.sum(pull, axis=0)
        square += tl.sum(level * rise, axis=0)
        mass += tl.sum(rise, axis=0)
    return first, sum, square, mass


@triton.jit  # type: ignore[untyped-decorator]
def move(  # type: ignore[no-untyped-def]
    levels,
    error,
    moved,
    old,
    new,
    rows,
    block,
    OFFSETS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Give a block other scales: moved [block, rows] gets the change of its values, which `error` loses.

    old, new: [2, rows], scale and offset; the second row is not read without OFFSETS
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    s, t = tl.load(old + row, mask=inside, other=0.0), tl.load(new + row, mask=inside, other=0.0)
    o, p = tl.zeros_like(s), tl.zeros_like(s)
    if OFFSETS:
        o = tl.load(old + rows + row, mask=inside, other=0.0)
        p = tl.load(new + rows + row, mask=inside, other=0.0)
    _moved(levels, error, moved, s, o, t, p, row, rows, block, OFFSETS, COLUMNS)


@triton.jit  # type: ignore[untyped-decorator]
def _moved(  # type: ignore[no-untyped-def]
    levels, error, moved, s, o, t, p, row, rows, block, OFFSETS: tl.constexpr, COLUMNS: tl.constexpr
):
    """See `move`: from scale s and offset o to t and p."""
    for start in range(0, block, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = column[:, None].to(tl.int64) * rows + row[None, :]
        inside = (column < block)[:, None] & (row < rows)[None, :]
        level = tl.load(levels + here, mask=inside, other=0.0)
        before, after = level * s[None, :], level * t[None, :]
        if OFFSETS:
            before, after = before + o[None, :], after + p[None, :]
        change = after - before
        tl.store(moved + here, change, mask=inside)
        tl.store(error + here, tl.load(error + here, mask=inside, other=0.0) - change, mask=inside)


@triton.jit
def _ratio(above, below):  # type: ignore[no-untyped-def]
    """above / below, but 0 if below is not positive."""
    return tl.where(below > 0, tl.math.div_rn(above, tl.where(below > 0, below, 1.0)), 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _kept_scale(scale, least, largest, STORED: tl.constexpr):  # type: ignore[no-untyped-def]
    """A scale as it is stored: float32, or rounded to float16 or bfloat16; within least and largest."""
    found = tl.minimum(tl.maximum(scale, least), largest)
    if STORED == _BFLOAT16:
        bits = found.to(tl.int32, bitcast=True)  # half to even by hand: the interpreter's conversion does not round
        found = ((bits + 32767 + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    elif STORED == _FLOAT16:
        found = tl.minimum(tl.maximum(found, -65504.0), 65504.0).to(tl.float16).to(tl.float32)
    return found


@triton.jit
def _kept_zero(offset, scale, half, top):  # type: ignore[no-untyped-def]
    """The stored zero point that is nearest to an offset, for a stored scale."""
    place = half - tl.math.div_rn(offset, tl.where(scale > 0, scale, 1.0))
    return tl.minimum(tl.maximum(place, 0.0), top) + _ROUND - _ROUND


@triton.jit
def _along(s, o, ratio, first, sum, square, mass, total):  # type: ignore[no-untyped-def]
    """See `descent.Quadratic.best_along`."""
    pull = first + s * square + o * mass
    pull = pull + ratio * (sum + s * mass + o * total)
    return _ratio(pull, square + ratio * (2.0 * mass + ratio * total))


@triton.jit  # type: ignore[untyped-decorator]
def refit_affine(  # type: ignore[no-untyped-def]
    levels,
    slope,
    steep,
    error,
    moved,
    scale,
    offset,
    zero,
    total_of,
    rows,
    block,
    least,
    largest,
    half,
    top,
    OFFSETS: tl.constexpr,
    STORED: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`descent._refit_block` for integers with a scale, and with OFFSETS a zero point, a block: one launch.

    scale, offset, zero: [rows] float32 of this block, changed to the pair that lowers the error most; total_of: [1]
    STORED: precision of the scale: 0 float32, 1 float16, 2 bfloat16. least, largest: bounds of the scale, the former
        is 0 where scales have no sign. half, top: the middle and the last code
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    first, sum, square, mass = _summed(levels, slope, steep, row, rows, block, COLUMNS, ROWS)
    s = tl.load(scale + row, mask=inside, other=0.0)
    o, best_zero = tl.zeros_like(s), tl.zeros_like(s)
    best_s, best_o, most = s, o, tl.zeros_like(s)
    if OFFSETS:
        total = tl.load(total_of)
        o = tl.load(offset + row, mask=inside, other=0.0)
        best_zero = tl.load(zero + row, mask=inside, other=0.0)
        best_o = o
        determinant = square * total - mass * mass
        sound = tl.where(determinant > 1e-5 * square * total, determinant, 0.0)
        step = _ratio(total * first - mass * sum, sound)
        wanted = s + step
        shift = o + tl.math.div_rn(sum - step * mass, tl.zeros_like(s) + total)
        kept = _kept_scale(wanted, least, largest, STORED)
        pair_o = (half - _kept_zero(shift, kept, half, top)) * kept
        pair = tl.where(kept != 0, tl.math.div_rn(pair_o, tl.where(kept != 0, kept, 1.0)), 0.0)
        own = tl.where(s != 0, tl.math.div_rn(o, tl.where(s != 0, s, 1.0)), 0.0)
        for attempt in tl.static_range(3):
            if attempt > 0:
                ratio = pair if attempt == 1 else own
                wanted = _along(s, o, ratio, first, sum, square, mass, total)
                shift = wanted * ratio
            new = _kept_scale(wanted, least, largest, STORED)
            point = _kept_zero(shift, new, half, top)
            new_o = (half - point) * new
            ds, do = new - s, new_o - o
            gain = ds * (2.0 * first - ds * square) + do * (2.0 * (sum - ds * mass) - do * total)
            take = gain > most
            most, best_s = tl.where(take, gain, most), tl.where(take, new, best_s)
            best_o, best_zero = tl.where(take, new_o, best_o), tl.where(take, point, best_zero)
        tl.store(offset + row, best_o, mask=inside)
        tl.store(zero + row, best_zero, mask=inside)
    else:
        new = _kept_scale(s + _ratio(first, square), least, largest, STORED)
        ds = new - s
        best_s = tl.where(ds * (2.0 * first - ds * square) > 0.0, new, s)
    tl.store(scale + row, best_s, mask=inside)
    _moved(levels, error, moved, s, o, best_s, best_o, row, rows, block, OFFSETS, COLUMNS)
