"""Bytes, values and errors of the ggml formats held against llama.cpp's own functions."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
import pytest
from safetensors.numpy import load_file

from bitsmith.containers.floats import encode_float
from bitsmith.containers.gguf.blocks import CODECS, decode_rows
from bitsmith.containers.gguf.types import TYPES
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.oracle import ggml

REFERENCE = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
# building llama.cpp's search tables for IQ1 and IQ2 takes up to half a minute; random bytes cover their decoding
SLOW = [name for name in CODECS if name.startswith(("iq1", "iq2"))]
QUICK = [name for name in CODECS if name not in SLOW]
SEARCHED = [name for name in GGML_FORMATS if name not in REFERENCE]
COMPARED = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SEARCHED]


@cache
def model() -> dict[str, np.ndarray]:
    """The first 32 rows of every matrix of the reference model, float32."""
    with_all = load_file(str(files("bitsmith") / "reference" / "model.safetensors"))
    return {name: w[:32].astype(np.float32) for name, w in with_all.items() if w.ndim == 2}


@cache
def synthetic() -> dict[str, np.ndarray]:
    """Gaussian and heavy-tailed weights of several row lengths."""
    rng = np.random.default_rng(0)
    made = {}
    for cols in (256, 512, 2048):
        made[f"gauss {cols}"] = (0.02 * rng.standard_normal((16384 // cols, cols))).astype(np.float32)
        made[f"student {cols}"] = (0.02 * rng.standard_t(3, (16384 // cols, cols))).astype(np.float32)
    return made


def hard_weights() -> np.ndarray:
    """[rows, 64] float32: all magnitudes, ties, signed zeros, denormals, scales beyond float16, random bit patterns."""
    rng = np.random.default_rng(0)

    def normal(scale: float, rows: int = 100) -> np.ndarray:
        return (scale * rng.standard_normal((rows, 64))).clip(-3e38, 3e38).astype(np.float32)

    bits = rng.integers(0, 2**32, (2000, 64), dtype=np.uint32).view(np.float32)
    tiny = np.array([1e-45, -1e-45, 0, 3e-45, 2e-44], np.float32)
    huge = np.array([3.4e38, -3.4e38, 0, 1], np.float32)
    return np.concatenate(
        [
            *[normal(10.0**power) for power in (0, -5, -7, -38, -40, -44, 4, 6, 20, 30, 37)],
            rng.standard_t(1, (200, 64)).astype(np.float32),
            np.zeros((2, 64), np.float32),
            -np.zeros((2, 64), np.float32),
            rng.integers(-8, 9, (1000, 64)).astype(np.float32),
            (rng.integers(-127, 128, (500, 64)) / 2).astype(np.float32),
            rng.choice(np.array([0.0, -0.0, 1, -1], np.float32), (300, 64)),
            rng.choice(np.array([0.0, -0.0], np.float32), (300, 64)),
            rng.choice(tiny, (300, 64)),
            rng.choice(huge, (100, 64)),
            np.full((2, 64), 0.1, np.float32),
            np.abs(normal(1.0)),
            -np.abs(normal(1.0)),
            np.where(np.isfinite(bits), bits, 0),
        ]
    )


def encoded(name: str, w: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    codes, params = nearest(w, GGML_FORMATS[name], importance)
    return CODECS[name].encode(QuantTensor(GGML_FORMATS[name], codes, params))["data"]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the bit; any NaN equals any NaN."""
    return bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))))


@pytest.mark.parametrize("name", REFERENCE)
def test_bytes_without_importance_equal_llama_cpp(name: str) -> None:
    for w in [hard_weights(), *model().values(), *synthetic().values()]:
        assert np.array_equal(encoded(name, w), ggml.quantize(name, w))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_floats_round_as_llama_cpp_does(name: str) -> None:
    w = hard_weights()
    assert np.array_equal(encode_float(name, w).view(np.uint16), ggml.floats_to(name, w))


@pytest.mark.parametrize("name", CODECS)
def test_any_bytes_decode_to_the_bits_of_llama_cpp(name: str) -> None:
    kind = TYPES[name]
    cols = 4 * kind.block
    data = np.random.default_rng(2).integers(0, 256, (500, kind.row_bytes(cols)), dtype=np.uint8)
    assert same_bits(decode_rows(name, data, cols), ggml.dequantize(name, data, cols))


@pytest.mark.parametrize("name", QUICK)
def test_their_files_decode_to_their_bits(name: str) -> None:
    importance = np.random.default_rng(3).random(512).astype(np.float32) + np.float32(0.1)
    for label in ("gauss 512", "student 512"):
        data = ggml.quantize(name, synthetic()[label], importance)
        values = decode_rows(name, data, 512)
        assert np.isfinite(values).all()
        assert same_bits(values, ggml.dequantize(name, data, 512))


@pytest.mark.parametrize("name", SEARCHED)
def test_our_files_decode_the_same_there(name: str) -> None:
    w = synthetic()["student 512"]
    data = encoded(name, w)
    assert same_bits(decode_rows(name, data, 512), ggml.dequantize(name, data, 512))


@pytest.mark.parametrize("source", ["model", "synthetic"])
@pytest.mark.parametrize("name", COMPARED)
def test_plain_error_is_no_worse_than_llama_cpps(name: str, source: str) -> None:
    for label, w in (model() if source == "model" else synthetic()).items():
        assert error(name, w, encoded(name, w)) <= error(name, w, ggml.quantize(name, w)), label


@pytest.mark.parametrize("source", ["model", "synthetic"])
@pytest.mark.parametrize("name", [*REFERENCE, *COMPARED])
def test_weighted_error_is_no_worse_than_llama_cpps(name: str, source: str) -> None:
    rng = np.random.default_rng(7)
    for label, w in (model() if source == "model" else synthetic()).items():
        importance = np.exp(1.5 * rng.standard_normal(w.shape[1])).astype(np.float32)
        ours, theirs = encoded(name, w, importance), ggml.quantize(name, w, importance)
        assert error(name, w, ours, importance) <= error(name, w, theirs, importance), label


def error(name: str, w: np.ndarray, data: np.ndarray, importance: np.ndarray | None = None) -> float:
    """(Weighted) squared error of the decoded bytes, summed in float64."""
    squares = np.square(ggml.dequantize(name, data, w.shape[1]).astype(np.float64) - w)
    return float((squares if importance is None else squares * importance).sum())
