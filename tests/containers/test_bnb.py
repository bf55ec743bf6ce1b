"""bitsandbytes' layouts: folders as its own tools write them, rows that blocks cross, and states that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.containers.bnb_codecs import STATE, FourBitCodec, RowInt8Codec
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import BitsmithError, FileError, TensorError, UnsupportedError
from bitsmith.quant.formats.fourbit import dynamic_map, fp4, nf4
from bitsmith.quant.formats.nested import Nested
from bitsmith.quant.formats.rowabsmax import RowAbsmax
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.containers.foreign import MODULE, check_reads, write_folder

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
ROWS = 66


def four_bits(cols: int, block: int, *, nested: bool = False, table: str = "nf4") -> tuple[dict[str, Any], np.ndarray]:
    """Parts of a weight [66, cols] and its values, put together one number at a time."""
    rng = np.random.default_rng(cols + block)
    count = ROWS * cols
    blocks = -(-count // block)
    patterns = rng.integers(0, 16, count).astype(np.uint8)
    format = nf4(block) if table == "nf4" else fp4(block)
    means = np.zeros(16, np.float32)
    for pattern, value in zip(format.patterns, format.table, strict=True):
        means[pattern] = value
    state: dict[str, Any] = {"quant_type": table, "blocksize": block, "dtype": "bfloat16", "shape": [ROWS, cols]}
    parts: dict[str, Any] = {}
    if nested:
        codes = rng.integers(128, 256, blocks).astype(np.uint8)
        ranges = rng.uniform(0.1, 0.2, -(-blocks // 256)).astype(np.float32)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.30000001192092896}
        scale = np.array(
            [dynamic_map()[code] * ranges[i // 256] + np.float32(0.3) for i, code in enumerate(codes)], np.float32
        )
        parts |= {"weight.absmax": codes, "weight.nested_absmax": ranges, "weight.nested_quant_map": dynamic_map()}
    else:
        scale = rng.uniform(0.5, 2, blocks).astype(np.float32)
        parts |= {"weight.absmax": scale}
    padded = np.append(patterns, np.zeros(count % 2, np.uint8))
    packed = np.array([[padded[i] << 4 | padded[i + 1]] for i in range(0, len(padded), 2)], np.uint8)
    parts |= {"weight": packed, "weight.quant_map": means, f"{STATE}{table}": as_bytes(state)}
    values = np.array([means[p] * scale[i // block] for i, p in enumerate(patterns)], np.float32)
    return parts, values.reshape(ROWS, cols)


def as_bytes(state: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(state).encode(), np.uint8)


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("cols", "block"), [(64, 64), (192, 128), (100, 64), (33, 32), (1536, 64)])
def test_folders_of_bitsandbytes(tmp_path: Path, table: str, nested: bool, cols: int, block: int) -> None:
    """Also those whose blocks cross rows, and whose bytes do."""
    parts, expected = four_bits(cols, block, nested=nested, table=table)
    name = {64: table}.get(block, f"{table}-g{block}")
    check_reads(write_folder(tmp_path / "m", parts, FOUR), expected, f"bnb/{name}{'-dq' if nested else ''}")


def test_bytes_stored_as_another_type(tmp_path: Path) -> None:
    parts, expected = four_bits(64, 64)
    parts["weight"] = parts["weight"].reshape(-1).view(np.float16).reshape(-1, 1)
    check_reads(write_folder(tmp_path / "m", parts, FOUR), expected, "bnb/nf4-in-float16")


def test_eight_bits(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(-128, 128, (ROWS, 48)).astype(np.int8)
    scales = np.random.default_rng(2).uniform(1, 3, ROWS).astype(np.float32)
    parts = {"weight": codes, "SCB": scales, "weight_format": np.zeros((), np.uint8)}
    expected = codes.astype(np.float64) * scales[:, None] / 127
    source = check_reads(write_folder(tmp_path / "m", parts, EIGHT), expected, "bnb/int8")
    assert str(source.input_rounding(f"{MODULE}.weight")) == "llm.int8, per token, threshold 6"
    parts["weight_format"] = np.full((), 2, np.uint8)
    with pytest.raises(TensorError, match="weight_format is 2, an order for one kind of GPU"):
        SafetensorsSource(write_folder(tmp_path / "turing", parts, EIGHT)).rows(f"{MODULE}.weight")


@pytest.mark.parametrize("format", [nf4(), fp4(128), Nested(nf4()), Nested(fp4(64))], ids=lambda format: format.name)
def test_slabs_join_to_the_same_bytes(format: Any) -> None:
    w = np.random.default_rng(3).standard_normal((160, 384)).astype(np.float32)
    codec = FourBitCodec(format).of_shape(w.shape)
    codes, params = nearest(w, format)
    tensor = QuantTensor(format, codes, format.settled(params) if isinstance(format, Nested) else params)
    whole = codec.join([codec.encode(tensor)])
    assert {part: (x.shape, x.dtype) for part, x in whole.items()} == codec.layout(w.shape)
    slabs = codec.join([codec.encode(tensor.rows(slice(at, at + 80))) for at in (0, 80)])
    assert all(np.array_equal(whole[part], slabs[part]) for part in whole)
    back = codec.decode(whole, 384)
    assert np.array_equal(back.values(), tensor.values())
    assert np.array_equal(codec.decode(codec.window(whole, 7, 11), 384).values(), tensor.values()[7:11])


def test_doubly_quantized_scales_cross_rows() -> None:
    w = np.random.default_rng(3).standard_normal((300, 192)).astype(np.float32) * np.linspace(1, 9, 300)[:, None]
    w = w.astype(np.float32)
    format = Nested(nf4())
    codec = FourBitCodec(format).of_shape(w.shape)
    codes, params = nearest(w, format)
    parts = codec.join([codec.encode(QuantTensor(format, codes, params))])
    assert parts["weight.absmax"].shape == (900,)
    assert parts["weight.nested_absmax"].shape == (4,)
    exact = params["scale"]
    close = codec.decode(parts, 192).params["scale"]
    assert np.abs(close / exact - 1).max() < 0.06
    assert not np.array_equal(close, exact)
    state = json.loads(parts[f"{STATE}nf4"].tobytes())
    assert state["nested_offset"] == pytest.approx(float(exact.mean()), rel=1e-6)


def _changed(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(parts: dict[str, Any]) -> None:
        state = json.loads(parts[f"{STATE}nf4"].tobytes())
        parts[f"{STATE}nf4"] = as_bytes({**state, **fields})

    return change


def _without(part: str) -> Callable[[dict[str, Any]], None]:
    def change(parts: dict[str, Any]) -> None:
        del parts[part]

    return change


def _longer(parts: dict[str, Any]) -> None:
    parts["weight.absmax"] = np.append(parts["weight.absmax"], np.float32(1))


def _no_json(parts: dict[str, Any]) -> None:
    parts[f"{STATE}nf4"] = np.frombuffer(b"{shape", np.uint8)


def _long_state(parts: dict[str, Any]) -> None:
    parts[f"{STATE}nf4"] = np.frombuffer(b"{" + b" " * 5000 + b"}", np.uint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_changed(shape=[ROWS, 128]), r"says the weight is \[66, 128\], 8,448 codes, but .*weight holds 4,224"),
        (_changed(shape=[ROWS * 64]), r"shape is \[4224\], expected \[rows, columns\]"),
        (_changed(shape=[ROWS, -64]), r"shape is \[66, -64\], expected"),
        (_changed(shape=[64, ROWS], blocksize=48), "blocksize is 48, known are 32, 64"),
        (_changed(blocksize=128), r"absmax is F32 \[66\]; bnb/nf4-g128 of shape \[66, 64\] needs float32 \[33\]"),
        (_changed(quant_type="fp4"), "quant_type is fp4, but the entry's name says nf4"),
        (_changed(dtype="int8"), "dtype is int8, known are float32"),
        (_without("weight.absmax"), r"weight.absmax is missing"),
        (_without("weight.quant_map"), r"weight.quant_map is missing"),
        (_without("weight"), r"weight is missing"),
        (_longer, r"absmax is F32 \[67\]"),
        (_no_json, "not JSON|JSON"),
        (_long_state, "states have at most 4,096"),
    ],
)
def test_a_state_that_lies(tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    parts, _ = four_bits(64, 64)
    change(parts)
    with pytest.raises(FileError, match=said):
        SafetensorsSource(write_folder(tmp_path / "m", parts, FOUR))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"nested_offset": "x"}, "nested_offset is x, expected a number"),
        ({"nested_blocksize": 64}, "known is 256"),
        ({"nested_dtype": "float16"}, "known is float32"),
    ],
)
def test_a_nested_state_that_lies(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    parts, _ = four_bits(64, 64, nested=True)
    _changed(**fields)(parts)
    with pytest.raises(FileError, match=said):
        SafetensorsSource(write_folder(tmp_path / "m", parts, FOUR))


def test_another_table(tmp_path: Path) -> None:
    parts, _ = four_bits(64, 64)
    parts["weight.quant_map"] = np.linspace(-1, 1, 16, dtype=np.float32)
    with pytest.raises(TensorError, match="quant_map is not the table of nf4"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, FOUR)).rows(f"{MODULE}.weight")


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(("nested", "entry"), [(False, "weight.absmax"), (True, "weight.nested_absmax")])
def test_absmax_that_no_weights_have(tmp_path: Path, nested: bool, entry: str, bad: float) -> None:
    parts, _ = four_bits(64, 64, nested=nested)
    parts[entry][-1] = bad
    with pytest.raises(TensorError, match=f"{MODULE}.weight: {entry} has {bad}, expected finite numbers from 0"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, FOUR)).rows(f"{MODULE}.weight")


def test_another_table_of_scales(tmp_path: Path) -> None:
    parts, _ = four_bits(64, 64, nested=True)
    parts["weight.nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
    with pytest.raises(TensorError, match="nested_quant_map is not the table of 8 bits"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, FOUR)).rows(f"{MODULE}.weight")


def test_absmax_of_eight_bits_that_no_weights_have(tmp_path: Path) -> None:
    scales = np.array([1, 1, -2, 1], np.float32)
    parts = {"weight": np.zeros((4, 8), np.int8), "SCB": scales, "weight_format": np.zeros((), "u1")}
    with pytest.raises(TensorError, match=r"SCB has -2\.0, expected finite numbers from 0"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, EIGHT)).rows(f"{MODULE}.weight")


def test_a_state_of_another_model(tmp_path: Path) -> None:
    """A shape with as many weights, but not the shape that the configuration gives: nothing is loaded."""
    parts, _ = four_bits(64, 64)
    _changed(shape=[64, ROWS])(parts)
    source = SafetensorsSource(write_folder(tmp_path / "m", parts, FOUR))
    assert source.tensors[f"{MODULE}.weight"].shape == (64, ROWS)


def test_eight_bits_without_their_format(tmp_path: Path) -> None:
    parts = {"weight": np.zeros((4, 8), np.int8), "SCB": np.ones(4, np.float32)}
    with pytest.raises(FileError, match="weight_format is missing"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, EIGHT))


def test_eight_bits_kept_in_16(tmp_path: Path) -> None:
    parts = {"weight": np.zeros((4, 8), np.float16), "SCB": np.ones(4, np.float32)}
    with pytest.raises(UnsupportedError, match="is F16 although it has scales in SCB"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, EIGHT))


@pytest.mark.parametrize("threshold", ["high", -1.0, float("inf")])
def test_a_threshold_that_is_no_number(tmp_path: Path, threshold: Any) -> None:
    parts = {"weight": np.zeros((4, 8), np.int8), "SCB": np.ones(4, np.float32), "weight_format": np.zeros((), "u1")}
    with pytest.raises(BitsmithError, match=r"llm_int8_threshold|config\.json"):
        SafetensorsSource(write_folder(tmp_path / "m", parts, {**EIGHT, "llm_int8_threshold": threshold}))


def test_only_matrices() -> None:
    for codec in (FourBitCodec(nf4()), RowInt8Codec()):
        with pytest.raises(UnsupportedError, match="holds matrices, not"):
            codec.layout((2, 64, 64))


def test_int8_codes_and_absmax() -> None:
    w = np.float32([[0.5, -1.27, 0.004, 0.0], [0, 0, 0, 0], [1e-9, -1e-9, 0, 0]])
    codes, params = nearest(w, RowAbsmax())
    parts = RowInt8Codec().encode(QuantTensor(RowAbsmax(), codes, params))
    assert parts["weight"].tolist() == [[50, -127, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert parts["SCB"].tolist() == [float(np.float32(np.float16(1.27))), 0.0, 0.0]  # float16 first, as bitsandbytes
