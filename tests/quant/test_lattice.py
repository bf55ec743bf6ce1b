"""Weights that lie on a grid already: their codes and scales are found, and no others are taken for such."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from bitsmith.quant.formats import FORMATS, get_format
from bitsmith.quant.lattice import has_lattice, kept, precision_of, probe, probed_rows, recover
from bitsmith.quant.rounders.nearest import nearest

FEW_BITS = tuple(name for name, format in FORMATS.items() if has_lattice(format) and format.bits < 8)
PRECISIONS = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}


def weights(rows: int = 24, cols: int = 256) -> np.ndarray:
    return (np.random.default_rng(3).standard_normal((rows, cols)) * 0.02).astype(np.float32)


def on_grid(name: str, precision: str) -> np.ndarray:
    """What a checkpoint trained for the format holds: values of its grid in 16 or 32 bits."""
    format = get_format(name)
    codes, params = nearest(weights(), format)
    values: np.ndarray = format.grid(params).values(codes).astype(PRECISIONS[precision]).astype(np.float32)
    return values


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FEW_BITS)
def test_recovers_every_row(name: str, precision: str) -> None:
    w, format = on_grid(name, precision), get_format(name)
    tensor, found = recover(w, format)
    exempt = name.endswith("channel-asym") or (name == "q4_1" and precision == "bf16")  # offsets are rounded twice
    assert found.all() or (exempt and found.mean() > 0.8)
    assert kept(tensor.values()[found], w[found])
    if precision == "f32":
        assert np.array_equal(tensor.values()[found], w[found])
    assert probe(w[list(probed_rows(len(w)))], format) or exempt


@pytest.mark.parametrize("name", ["int8-g128", "int8-g64-asym", "q8_0", "fp8", "int8-channel"])
def test_eight_bits_from_float16(name: str) -> None:
    w = on_grid(name, "f16")
    tensor, found = recover(w, get_format(name))
    assert found.all()
    assert kept(tensor.values(), w)


@pytest.mark.parametrize("name", FEW_BITS)
def test_other_weights_are_not_taken_for_it(name: str) -> None:
    format = get_format(name)
    for w in (weights(), weights().astype(ml_dtypes.bfloat16).astype(np.float32)):
        assert not probe(w[list(probed_rows(len(w)))], format)
        assert not recover(w, format)[1].any()


def test_some_rows_only() -> None:
    w = on_grid("q4_0", "bf16")
    w[5] = weights()[5].astype(ml_dtypes.bfloat16)
    _, found = recover(w, get_format("q4_0"))
    assert found.sum() == len(w) - 1
    assert not found[5]


def test_zeros_and_values_that_are_not_finite() -> None:
    format = get_format("int4-g64")
    zeros = np.zeros((4, 256), np.float32)
    assert recover(zeros, format)[1].all()
    assert np.array_equal(recover(zeros, format)[0].values(), zeros)
    assert not probe(zeros, format)  # says nothing
    assert not probe(np.full((4, 256), np.nan, np.float32), format)
    assert not probe(zeros[:0], format)


def test_formats_without_a_scale_of_each_block() -> None:
    for name in ("q4_k", "q6_k", "nf4-dq", "int8-tensor"):
        assert not has_lattice(get_format(name))
        assert not probe(weights(), get_format(name))


def test_precision() -> None:
    w = weights()
    assert precision_of(w) == np.float32
    assert precision_of(w.astype(np.float16).astype(np.float32)) == np.float16
    assert precision_of(w.astype(ml_dtypes.bfloat16).astype(np.float32)) == ml_dtypes.bfloat16
