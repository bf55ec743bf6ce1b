"""The quantizing half of the C++ core: to the bit what the numpy code gives, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import bitsmith
from bitsmith.containers.gguf.blocks_k import K_CODECS
from bitsmith.containers.gguf.blocks_simple import SIMPLE_CODECS
from bitsmith.containers.gguf.core_blocks import encode_stored
from bitsmith.errors import TensorError
from bitsmith.pipeline.encode import sum_of_squares
from bitsmith.quant.formats.base import Format, ReferenceCoded
from bitsmith.quant.formats.core_fit import Searched, quantizer
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.scale_search import column_weights
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.core import core
from tests.quant.formats.samples import hostile
from tests.tiny import make_folder

module = core()
if module is None:
    pytest.skip("this installation has no C++ core", allow_module_level=True)

CODECS = {**SIMPLE_CODECS, **K_CODECS}
FORMATS = [format for name, format in GGML_FORMATS.items() if isinstance(format, Searched) and name in CODECS]
COLS = 512
FLOATS: dict[str, type] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}

each_format = pytest.mark.parametrize("format", FORMATS, ids=[format.name for format in FORMATS])
each_isa = pytest.mark.parametrize("isa", module.isas())
weighted = pytest.mark.parametrize("importance", [False, True], ids=["plain", "weighted"])


def special() -> np.ndarray:
    """Rows of COLS weights: ordinary, heavy-tailed, hostile, tiny, on the middles between levels, huge beside zero."""
    rng = np.random.default_rng(2)
    w = hostile(12, COLS)
    w[11] = 0
    w[11, ::3] = -0.0
    w[11, 64:128] = 1e30
    w[11, 130] = -1e30
    halves = np.round(rng.standard_normal((4, COLS)) * 4) / 2
    ordinary = rng.standard_normal((9, COLS)) * 0.02
    return np.concatenate([ordinary, w, w * np.float32(1e-38), halves, halves * 1e-3]).astype(np.float32)


def columns(importance: bool) -> np.ndarray | None:
    if not importance:
        return None
    values = np.square(np.random.default_rng(3).standard_normal(COLS)).astype(np.float32)
    values[:40] = 0
    return values


def encoded_reference(format: Format, w: np.ndarray, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of the numpy code, and what they stand for."""
    if importance is None and isinstance(format, ReferenceCoded):
        codes, params = format.reference(w)
    else:
        assert isinstance(format, Searched)
        params = format.fit_reference(w, importance)
        codes = format.grid(params).nearest(w)
    tensor = QuantTensor(format, codes, params)
    return CODECS[format.name].encode(tensor)["data"], tensor.values()


@each_format
@weighted
def test_scales_equal_those_of_numpy(format: Format, importance: bool) -> None:
    assert isinstance(format, Searched)
    w = special()
    found, wanted = format.fit(w, columns(importance)), format.fit_reference(w, columns(importance))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name].view(np.uint8), values.view(np.uint8), err_msg=name)


@each_format
@each_isa
@weighted
def test_bytes_and_errors_equal_those_of_numpy(format: Format, isa: str, importance: bool) -> None:
    w = np.clip(special(), -6e4, 6e4)
    wanted, values = encoded_reference(format, w, columns(importance))
    chosen = quantizer(format, isa)
    assert chosen is not None
    out = np.empty_like(wanted)
    reference = not importance and isinstance(format, ReferenceCoded)
    weights = column_weights(columns(importance))
    found = chosen.encode(w.view(np.uint8), "f32", columns=weights, order=None, reference=reference, out=out)
    np.testing.assert_array_equal(out, wanted)
    assert found == (np.abs(w).max(), sum_of_squares(values - w), sum_of_squares(w))


@pytest.mark.parametrize("layout", FLOATS)
@each_isa
def test_rows_of_every_float_type_in_another_order(layout: str, isa: str) -> None:
    rng = np.random.default_rng(4)
    stored = np.concatenate([rng.standard_normal((5, 256)), rng.standard_normal((3, 256)) * 1e-6]).astype(
        FLOATS[layout]
    )
    order = rng.permutation(len(stored))
    wanted, values = encoded_reference(GGML_FORMATS["q4_k"], stored.astype(np.float32)[order], None)
    chosen = quantizer(GGML_FORMATS["q4_k"], isa)
    assert chosen is not None
    out = np.empty_like(wanted)
    found = chosen.encode(stored.view(np.uint8), layout, columns=None, order=order, reference=False, out=out)
    np.testing.assert_array_equal(out, wanted)
    assert found[1] == sum_of_squares(values - stored.astype(np.float32)[order])


@pytest.mark.parametrize("cols", [32, 64, 96, 416])
def test_few_and_odd_numbers_of_blocks(cols: int) -> None:
    w = np.random.default_rng(5).standard_normal((3, cols)).astype(np.float32)
    for name in ("q8_0", "q4_0", "q5_1", "iq4_nl"):
        wanted, _ = encoded_reference(GGML_FORMATS[name], w, None)
        blocks = encode_stored(CODECS[name], "f32", w.view(np.uint8))
        assert blocks is not None
        np.testing.assert_array_equal(blocks.data, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65536.0, -1e30])
@pytest.mark.parametrize("layout", FLOATS)
@each_isa
def test_what_must_be_looked_at_is_noticed(bad: float, layout: str, isa: str) -> None:
    chosen = quantizer(GGML_FORMATS["q8_0"], isa)
    assert chosen is not None
    for column in (0, 37, 63):
        w = np.ones((3, 64), np.float32)
        w[1, column] = bad
        with np.errstate(over="ignore"):
            data = w.astype(FLOATS[layout]).view(np.uint8)
        out = np.empty((3, 68), np.uint8)
        largest, *_ = chosen.encode(data, layout, columns=None, order=None, reference=True, out=out)
        assert not largest <= 65504


def test_arrays_that_are_not_contiguous_aligned_or_writable() -> None:
    format = GGML_FORMATS["q4_k"]
    w = np.random.default_rng(6).standard_normal((4, 256)).astype(np.float32)
    wanted = format.fit(w)
    unaligned = np.frombuffer(b"\0" + w.tobytes(), np.uint8)[1:].view(np.float32).reshape(w.shape)
    readonly = w.copy()
    readonly.flags.writeable = False
    for same in (np.asfortranarray(w), np.repeat(w, 2, axis=1)[:, ::2], unaligned, readonly):
        found = format.fit(same)
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert {name: values.shape for name, values in format.fit(w[:0]).items()}["d"] == (0, 1)
    doubles = format.fit(w.astype(np.float64))  # by numpy
    assert doubles.keys() == wanted.keys()


def call(**changed: object) -> Callable[[], object]:
    """A call of `encode` for two rows of 64 bfloat16 weights, but for what is changed."""
    chosen = quantizer(GGML_FORMATS["q4_0"])
    assert chosen is not None
    rows, out = np.zeros((2, 128), np.uint8), np.empty((2, 36), np.uint8)
    arguments = {
        "data": rows,
        "type": "bf16",
        "columns": None,
        "order": None,
        "reference": False,
        "out": out,
        **changed,
    }
    return lambda: chosen.encode(arguments.pop("data"), arguments.pop("type"), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": np.zeros((2, 126), np.uint8)}, "divides by 32; these have 63"),
        ({"data": np.zeros((2, 127), np.uint8)}, "127 bytes is no whole number"),
        ({"data": np.zeros(256, np.uint8)}, "1 dimensions"),
        ({"data": np.zeros((2, 256), np.uint8)[:, ::2]}, "data has gaps"),
        ({"data": np.zeros((2, 128), np.float32)}, "data has entries of 4 bytes"),
        ({"type": "f64"}, "not from f64"),
        ({"columns": np.ones(63, np.float32)}, r"columns has shape \[63\]; expected \[64\]"),
        ({"columns": np.ones(64)}, "not float32"),
        ({"columns": np.ones(64, np.float32), "reference": True}, "reference"),
        ({"order": np.array([0, 2])}, "row 2 in the order of 2 rows"),
        ({"order": np.array([0, -1])}, "row -1"),
        ({"order": np.array([0, 1], np.int32)}, "order has entries of 4 bytes"),
        ({"out": np.empty((2, 35), np.uint8)}, r"out has shape \[2, 35\]; expected \[2, 36\]"),
    ],
)
def test_bad_arguments_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changed)()


def test_settings_that_cannot_work_are_refused() -> None:
    assert module is not None
    settings: dict[str, object] = {"targets": (), "divisors": (), "reach": (), "rounds": 0, "scales": ()}
    for type, message in [
        ("q9_k", "no ggml type"),
        ("q4_k", "at least one divisor"),
        ("mxfp4", "1 to 256 scales"),
    ]:
        with pytest.raises(ValueError, match=message):
            module.Quantizer(type, **settings)
    with pytest.raises(ValueError, match="one reach"):
        module.Quantizer("q6_k", **{**settings, "divisors": (1.0,), "reach": (1, 2)})
    with pytest.raises(ValueError, match="'mmx' is not available"):
        module.Quantizer("q8_0", **settings, isa="mmx")


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
@each_format
def test_impossible_importance_is_refused(format: Format, bad: float) -> None:
    importance = np.ones(256, np.float32)
    importance[3] = bad
    w = np.ones((1, 256), np.float32)
    with pytest.raises(TensorError, match="importance"):
        encode_stored(CODECS[format.name], "f32", w.view(np.uint8), importance=importance)
    assert isinstance(format, Searched)
    for fit in (format.fit, format.fit_reference):
        with pytest.raises(TensorError, match="importance"):
            fit(w, importance)


def test_importance_of_zeros_is_not_ggmls_reference() -> None:
    w = np.random.default_rng(7).standard_normal((2, 256)).astype(np.float32)
    format, zeros = GGML_FORMATS["q4_0"], np.zeros(256, np.float32)
    blocks = encode_stored(CODECS["q4_0"], "f32", w.view(np.uint8), importance=zeros)
    codes, params = nearest(w, format, zeros)
    assert blocks is not None
    np.testing.assert_array_equal(blocks.data, CODECS["q4_0"].encode(QuantTensor(format, codes, params))["data"])


FILES = ("q4_k_m", "q3_k_m", "q2_k", "q6_k", "q8_0", "q5_1", "iq4_xs")


def test_whole_files_with_and_without_the_core_and_for_any_number_of_threads(tmp_path: Path) -> None:
    changes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "tie_word_embeddings": True}
    folder = make_folder(tmp_path / "model", **changes)
    words = [sys.executable, "-m", "bitsmith", "quantize", str(folder), "--out", str(tmp_path / "numpy")]
    without = subprocess.Popen(
        [*words, *(word for to in FILES for word in ("--to", to))],
        env={**os.environ, "BITSMITH_CORE": "0"},
        stdout=subprocess.DEVNULL,
    )
    made = [
        [bitsmith.quantize(folder, to=to, out=tmp_path / to, threads=n, force=True).out.read_bytes() for n in (1, 2, 5)]
        for to in FILES
    ]
    assert without.wait() == 0
    plain = {path.stem.rpartition(".")[2].rpartition("-")[2].lower(): path for path in (tmp_path / "numpy").iterdir()}
    for to, (one, two, five) in zip(FILES, made, strict=True):
        assert one == two == five
        assert plain[to].read_bytes() == one, to


def test_sources_that_the_core_does_not_read_go_the_other_way(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    packed = bitsmith.quantize(folder, to="gptq/int4", out=tmp_path / "gptq").out
    again = bitsmith.quantize(packed, to="q4_0", out=tmp_path / "again.gguf", requantize=True)
    assert again.manifest is not None
