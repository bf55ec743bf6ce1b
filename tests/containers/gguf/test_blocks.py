"""Block codecs: bytes survive decoding and encoding, sizes agree with the type table, wrong calls are refused."""

import ml_dtypes
import numpy as np
import pytest

from bitsmith.containers.floats import NUMBERS, encode_float
from bitsmith.containers.gguf.blocks import CODECS, decode_rows
from bitsmith.containers.gguf.types import TYPES
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.quant.formats.code_books import CodeBookFormat
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.tensor import QuantTensor
from bitsmith.quant.vector_grid import VECTOR

ACTIVATIONS = {"q8_1", "q8_k"}  # types llama.cpp computes with; no file holds them


def random_bytes(name: str, rows: int = 300, blocks: int = 3) -> np.ndarray:
    size = blocks * TYPES[name].block_bytes
    return np.random.default_rng(4).integers(0, 256, (rows, size), dtype=np.uint8)


def test_every_type_that_holds_weights_is_covered_once() -> None:
    covered = [*NUMBERS, *CODECS]
    assert sorted(covered) == sorted(set(TYPES) - ACTIVATIONS)
    assert set(CODECS) == set(GGML_FORMATS)


@pytest.mark.parametrize("name", CODECS)
def test_any_bytes_survive_decoding_and_encoding(name: str) -> None:
    data = random_bytes(name)
    cols = 3 * TYPES[name].block
    tensor = CODECS[name].decode({"data": data}, cols)
    again = CODECS[name].encode(tensor)["data"]
    if name == "tq1_0":  # several bytes stand for the same five digits
        again, data = (decode_rows(name, each, cols) for each in (again, data))
    assert np.array_equal(again, data, equal_nan=name == "tq1_0")
    layout = tensor.format.params_layout(len(data), cols)
    assert {key: (value.shape, value.dtype) for key, value in tensor.params.items()} == layout
    vector, bits = 1, tensor.format.bits
    if isinstance(tensor.format, CodeBookFormat):
        vector, bits = VECTOR, tensor.format.book.bits
    assert tensor.codes.shape == (len(data), cols // vector)
    assert tensor.codes.max() < 1 << bits


@pytest.mark.parametrize("name", CODECS)
def test_layout_is_what_encode_writes(name: str) -> None:
    codec, cols = CODECS[name], 2 * TYPES[name].block
    tensor = codec.decode({"data": random_bytes(name, rows=6, blocks=2)}, cols)
    shape, dtype = codec.layout((2, 3, cols))["data"]
    written = codec.encode(tensor)["data"]
    assert (written.shape, written.dtype) == (shape, dtype)
    with pytest.raises(UnsupportedError, match="whole number"):
        codec.layout((2, 3, cols + 8))


@pytest.mark.parametrize("name", CODECS)
def test_rows_decode_on_their_own(name: str) -> None:
    data = random_bytes(name, rows=40)
    cols = 3 * TYPES[name].block
    together = decode_rows(name, data, cols)
    assert together.shape == (40, cols)
    assert together.dtype == np.float32
    # every second row: a view whose rows do not follow each other
    assert np.array_equal(decode_rows(name, data[::2], cols), together[::2], equal_nan=True)


def test_a_q4_k_block_by_hand() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256) % 16
    params = {
        "d": np.array([[0.5]], np.float16),
        "dmin": np.array([[0.25]], np.float16),
        "scales": np.array([[1, 2, 3, 4, 5, 6, 7, 63]], np.uint8),
        "mins": np.array([[63, 0, 1, 2, 3, 4, 5, 6]], np.uint8),
    }
    data = CODECS["q4_k"].encode(QuantTensor(GGML_FORMATS["q4_k"], codes, params))["data"][0]
    assert data[:4].tolist() == [0x00, 0x38, 0x00, 0x34]
    assert data[4:16].tolist() == [1, 2, 3, 4 | 3 << 6, 63, 0, 1, 2, 5 | 3 << 4, 6 | 4 << 4, 7 | 5 << 4, 15 | 6 << 4]
    assert data[16:20].tolist() == [0x00, 0x11, 0x22, 0x33]
    values = decode_rows("q4_k", data[None], 256)[0]
    assert values[5] == 0.5 * 1 * 5 - 0.25 * 63
    assert values[255] == 0.5 * 63 * 15 - 0.25 * 6


def test_infinite_and_nan_scales_are_data() -> None:
    data = np.zeros((3, 18), np.uint8)
    data[:, :2] = np.array([[np.inf], [-np.inf], [np.nan]], np.float16).view(np.uint8)
    values = decode_rows("q4_0", data, 32)
    assert (values[0] == -np.inf).all()
    assert (values[1] == np.inf).all()
    assert np.isnan(values[2]).all()


@pytest.mark.parametrize("name", NUMBERS)
def test_plain_numbers(name: str) -> None:
    numbers = np.array([[0, 1, -2], [100, -100, 7]]).astype(NUMBERS[name])
    decoded = decode_rows(name, numbers.view(np.uint8), 3)
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, [[0, 1, -2], [100, -100, 7]])


@pytest.mark.parametrize(("name", "kind"), [("f32", np.float32), ("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_floats_round_to_nearest_even(name: str, kind: type) -> None:
    step = float(ml_dtypes.finfo(kind).eps)
    w = np.array([[1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, -1 - step / 2]], np.float64).astype(np.float32)
    expected = w if name == "f32" else np.array([[1, 1 + 2 * step, 1 + step, -1]], np.float32)
    assert np.array_equal(decode_rows(name, encode_float(name, w), 4), expected)


def test_float16_turns_infinite_from_65520_on() -> None:
    below = np.nextafter(np.float32(65520), np.float32(0))
    w = np.array([[1, below, -below], [np.inf, -65520, 1e30]], np.float32)
    stored = encode_float("f16", w).view(np.float16)
    assert np.isinf(stored).tolist() == [[False, False, False], [True, True, True]]


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="q8_1"):
        decode_rows("q8_1", np.zeros((1, 36), np.uint8), 32)
    with pytest.raises(UnsupportedError, match="'q9'"):
        decode_rows("q9", np.zeros((1, 36), np.uint8), 32)
    with pytest.raises(UnsupportedError, match="whole number"):
        decode_rows("q4_0", np.zeros((1, 18), np.uint8), 33)
    with pytest.raises(FileError, match="take 18 bytes"):
        decode_rows("q4_0", np.zeros((1, 17), np.uint8), 32)
    with pytest.raises(UnsupportedError, match="i8"):
        encode_float("i8", np.zeros((1, 4), np.float32))
