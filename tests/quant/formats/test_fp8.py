"""FP8 E4M3 against ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest

from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.rounders.nearest import nearest
from tests.quant.formats.samples import check_both_libraries_and_rows, hostile, told

E4M3 = ml_dtypes.float8_e4m3fn


def test_the_table_is_every_finite_value_once() -> None:
    format = fp8()
    every = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
    assert np.array_equal(np.float32(format.table), np.unique(every[np.isfinite(every)]))
    assert len(format.table) == 253
    assert np.array_equal(np.array(format.patterns, np.uint8).view(E4M3).astype(np.float32), np.float32(format.table))
    assert 0x80 not in format.patterns
    assert format.aliases == ((0x80, 126),)
    assert format.table[126] == 0


def test_rounding_is_ml_dtypes_but_for_ties() -> None:
    format = fp8()
    w = (np.random.default_rng(0).standard_normal((8, 4096)) * 2.0 ** np.arange(-12, 4)[:8, None]).astype(np.float32)
    w[:, 0] = 448  # scale 1
    codes, params = nearest(w, format)
    assert (params["scale"] == 1).all()
    ours = format.grid(params).values(codes)
    theirs = w.astype(E4M3).astype(np.float32)
    table = np.float32(format.table)
    ties = np.isin(w, (table[1:] + table[:-1]) / 2)
    assert np.array_equal(ours[~ties], theirs[~ties])


def test_ties_go_down() -> None:
    format = fp8()
    table = np.float32(format.table)
    w = np.concatenate([(table[1:] + table[:-1]) / 2, np.float32([448])])[None]
    codes, _ = nearest(w, format)
    assert codes[0, :-1].tolist() == list(range(252))


@pytest.mark.parametrize("format", [fp8(), TensorWide("fp8-tensor", fp8())], ids=["fp8", "fp8-tensor"])
def test_hostile_weights(format: Codebook | TensorWide) -> None:
    w = hostile()[:, :251]
    values = check_both_libraries_and_rows(format, w)
    top = np.abs(w).max(None if isinstance(format, TensorWide) else 1, keepdims=True)
    # relative 2^-4, or half the smallest step (2^-9 of 448ths of the largest)
    assert (np.abs(values.astype(np.float64) - w) <= np.abs(w) * 0.0626 + top * 2.0**-10 / 448 + 1e-42).all()
    assert np.abs(values).max() <= np.float32(3.4e38)


def test_importance() -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((4, 100)).astype(np.float32)
    importance = rng.random(100).astype(np.float32)
    searched = check_both_libraries_and_rows(fp8(), w, importance)
    plain = check_both_libraries_and_rows(fp8(), w)
    assert ((searched - w) ** 2 * importance).sum() < ((plain - w) ** 2 * importance).sum()


def test_one_scale_a_tensor() -> None:
    w = hostile()[:5]
    _, params = nearest(w, told(TensorWide("fp8-tensor", fp8()), w))
    assert params["scale"].tolist() == [[np.abs(w).max() / np.float32(448)]] * 5
