"""The core's codes scaled by absmax equal the numpy code's, and so do its errors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bitsmith.containers.bnb_codecs import FourBitCodec, RowInt8Codec
from bitsmith.containers.core_parts import encode_parts
from bitsmith.containers.native import NativeCodec
from bitsmith.pipeline.encode import sum_of_squares
from bitsmith.quant.formats.core_absmax import codebook_codes, row_codes
from bitsmith.quant.formats.fourbit import FourBit, fp4, nf4
from bitsmith.quant.formats.nested import Nested
from bitsmith.quant.formats.rowabsmax import RowAbsmax
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.core import core

pytestmark = pytest.mark.skipif(not hasattr(core(), "round_codebook"), reason="needs the C++ core of these sources")
DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def drawn(layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights as they are stored, uint8 [rows, bytes], and as float32: ordinary, zero, tiny and large ones."""
    w = np.random.default_rng(1).standard_t(4, (9, 512)).astype(np.float32)
    w[1] = 0
    w[2] *= 1e-38
    w[3] *= 1e3
    w[4, 10] = -w[4].max() * 3
    stored = w.astype(DTYPES[layout])
    return stored.view(np.uint8), stored.astype(np.float32)


def numpy_codes(format: Any, w: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> QuantTensor:
    with monkeypatch.context() as patch:
        patch.setattr("bitsmith.quant.formats.fourbit.codebook_codes", lambda *args: None)
        codes, params = nearest(w, format)
    return QuantTensor(format, codes, params)


@pytest.mark.parametrize("layout", DTYPES)
@pytest.mark.parametrize("format", [nf4(), fp4(), nf4(128), fp4(256)], ids=lambda format: format.name)
def test_tables(layout: str, format: FourBit, monkeypatch: pytest.MonkeyPatch) -> None:
    data, w = drawn(layout)
    expected = numpy_codes(format, w, monkeypatch)
    found = codebook_codes(format, data, layout)
    assert found is not None
    assert np.array_equal(found.out, expected.codes)
    assert np.array_equal(found.absmax, expected.params["scale"])
    assert found.largest == np.abs(w).max()
    assert found.squared_error == sum_of_squares(expected.values() - w)
    assert found.squared_weight == sum_of_squares(w)
    turned = codebook_codes(format, data, layout, order=np.arange(9)[::-1].copy())
    assert turned is not None
    assert np.array_equal(turned.out, expected.codes[::-1])


@pytest.mark.parametrize("isa", [] if core() is None else core().isas())
def test_every_instruction_set(isa: str) -> None:
    module = core()
    assert module is not None
    data, w = drawn("f32")
    out, absmax = np.empty(w.shape, np.uint8), np.empty((9, 8), np.float32)
    table, patterns = np.array(nf4().table, np.float32), np.arange(16, dtype=np.uint8)
    first = codebook_codes(nf4(), data, "f32")
    assert first is not None
    found = module.round_codebook(
        data, "f32", block=64, table=table, patterns=patterns, out=out, absmax=absmax, isa=isa
    )
    assert np.array_equal(out, first.out)
    assert found[1] == first.squared_error


@pytest.mark.parametrize("layout", DTYPES)
def test_rows(layout: str) -> None:
    data, w = drawn(layout)
    codes, params = nearest(w, RowAbsmax())
    values = RowAbsmax().grid(params).values(codes)
    found = row_codes(data, layout)
    assert found is not None
    assert np.array_equal(found.out.view(np.uint8) ^ 128, codes)
    assert np.array_equal(found.absmax, params["absmax"][:, 0])
    assert found.squared_error == sum_of_squares(values - w)
    assert row_codes(data[:, :-4], layout) is None or layout != "f32"  # rows must divide by 16


@pytest.mark.parametrize(
    "codec",
    [FourBitCodec(nf4()), FourBitCodec(fp4(128)), FourBitCodec(Nested(nf4())), NativeCodec(fp4()), RowInt8Codec()],
    ids=["nf4", "fp4-g128", "nf4-dq", "native", "int8"],
)
def test_parts_equal_the_codecs(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, w = drawn("bf16")
    if isinstance(codec, FourBitCodec):
        codec = codec.of_shape(w.shape)
    if isinstance(codec.format, Nested):
        assert encode_parts(codec, "bf16", data) is None  # scales are not settled
        settled = codec.format.settled(codec.format.fit(w))
        codec = FourBitCodec(codec.format.settled_on(settled), codec.shape)
    tensor = numpy_codes(codec.format, w, monkeypatch)
    expected = codec.encode(tensor)
    found = encode_parts(codec, "bf16", data)
    assert found is not None
    assert found.parts.keys() == expected.keys()
    for part, array in expected.items():
        assert np.array_equal(found.parts[part], array), part
    assert found.squared_error == sum_of_squares(tensor.values() - w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_what_is_not_finite_or_large_is_left_to_numpy(bad: float) -> None:
    _, w = drawn("f32")
    w[3, 3] = bad
    assert encode_parts(FourBitCodec(nf4()).of_shape(w.shape), "f32", w.view(np.uint8)) is None
    assert encode_parts(RowInt8Codec(), "f32", w.view(np.uint8)) is None


def test_wrong_arguments() -> None:
    module = core()
    assert module is not None
    data, _ = drawn("f32")
    given: dict[str, Any] = {
        "table": np.zeros(16, "f4"),
        "patterns": np.zeros(16, "u1"),
        "out": np.zeros((9, 512), "u1"),
    }
    for words, said in (
        ({"block": 20, "absmax": np.zeros((9, 8), "f4")}, "blocks of 20"),
        ({"block": 96, "absmax": np.zeros((9, 8), "f4")}, "do not divide"),
        ({"block": 64, "absmax": np.zeros((9, 4), "f4")}, "absmax has shape"),
        ({"block": 64, "absmax": np.zeros((9, 8), "f4"), "order": np.full(9, 9)}, "row 9 in the order"),
    ):
        with pytest.raises(ValueError, match=said):
            module.round_codebook(data, "f32", **given, **words)
    with pytest.raises(ValueError, match="do not divide into blocks of 16"):
        module.round_rows(data[:, :32].copy(), "f32", out=np.zeros((9, 8), "i1"), absmax=np.zeros(9, "f4"))
