from pathlib import Path

import numpy as np
import pytest

from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, scalar, string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.gguf.writer import gguf_layout, header_bytes
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.quant.tensor import TensorInfo
from tests.gguf_files import random_stored, raw_file, raw_key, raw_string, raw_tensor, write_gguf

EVERY_TYPE = {
    **{
        f"n.{value_type.name}": scalar(value_type, 7)
        for value_type in ValueType
        if value_type not in (ValueType.BOOL, ValueType.STRING, ValueType.ARRAY)
    },
    "yes": Value(ValueType.BOOL, True),
    "no": Value(ValueType.BOOL, False),
    "text": string("ключ"),
    "empty": string(""),
    "none": array([], ValueType.FLOAT64),
    "bools": array([True, False]),
    "strings": array(["a", "", "漢字"]),
    "deep": array([array([array([1.5])]), array([], ValueType.ARRAY)]),
    "largest": scalar(ValueType.UINT64, 2**64 - 1),
    "smallest": scalar(ValueType.INT64, -(2**63)),
    "inf": scalar(ValueType.FLOAT32, float("inf")),
}


def test_header_is_what_the_specification_says() -> None:
    keys = {"a": u32(5), "b": string("x")}
    tensors = [TensorInfo("w", (2, 32), "q8_0", 68), TensorInfo("v", (3,), "f32", 12)]
    assert header_bytes(keys, tensors) == raw_file(
        [raw_key("a", 4, b"\5\0\0\0"), raw_key("b", 8, raw_string("x"))],
        [raw_tensor("w", [32, 2], 8, 0), raw_tensor("v", [3], 0, 96)],
    )


def test_regions_are_aligned_and_the_last_one_padded() -> None:
    tensors = [TensorInfo("w", (2, 32), "q8_0", 68), TensorInfo("v", (3,), "f32", 12)]
    (layout,) = gguf_layout("m.gguf", {}, tensors)
    start = len(layout.header)
    assert layout.filename == "m.gguf"
    assert [(r.tensor, r.part, r.offset - start, r.nbytes) for r in layout.regions] == [
        ("w", "data", 0, 68),
        ("v", "data", 96, 12),
    ]
    assert layout.size == start + 96 + 32
    assert start % 32 == 0


def test_same_input_gives_the_same_bytes() -> None:
    tensors = [TensorInfo("w", (4,), "f32", 16)]
    assert gguf_layout("m.gguf", EVERY_TYPE, tensors) == gguf_layout("m.gguf", EVERY_TYPE, tensors)


def test_every_value_type_round_trips(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", EVERY_TYPE, {})
    assert dict(GgufSource(tmp_path / "m.gguf").keys) == EVERY_TYPE


def test_a_rewritten_file_is_the_same(tmp_path: Path) -> None:
    tensors = {"w": random_stored("q4_k", (4, 512)), "n": np.ones(9, np.float32)}
    write_gguf(tmp_path / "a.gguf", {"general.alignment": u32(64), **EVERY_TYPE}, tensors)
    source = GgufSource(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", source.keys, tensors)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_an_unusual_alignment_is_written_down() -> None:
    header = header_bytes({"a": u32(1)}, [], 64)
    assert header == raw_file(
        [raw_key("general.alignment", 4, b"\x40\0\0\0"), raw_key("a", 4, b"\1\0\0\0")], alignment=64
    )
    assert header_bytes({"general.alignment": u32(64)}, [], 64) == header_bytes({}, [], 64)


@pytest.mark.parametrize("alignment", [0, 4, 24, 33, 1 << 21])
def test_impossible_alignments_are_refused(alignment: int) -> None:
    with pytest.raises(UsageError, match="power of two"):
        header_bytes({}, [], alignment)


def test_an_alignment_that_contradicts_the_key_is_refused() -> None:
    with pytest.raises(UsageError, match="uint32 64"):
        header_bytes({"general.alignment": u32(32)}, [], 64)
    with pytest.raises(UsageError, match=r"general\.alignment"):
        header_bytes({"general.alignment": scalar(ValueType.UINT64, 32)}, [])


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (TensorInfo("n" * 64, (4,), "f32", 16), UsageError, "64 bytes"),
        (TensorInfo("é" * 32, (4,), "f32", 16), UsageError, "64 bytes"),
        (TensorInfo("", (4,), "f32", 16), UsageError, "0 bytes"),
        (TensorInfo("w", (1, 1, 1, 1, 1), "f32", 4), UnsupportedError, "dimensions"),
        (TensorInfo("w", (0, 4), "f32", 0), UnsupportedError, "none empty"),
        (TensorInfo("w", (4,), "nf4", 16), UnsupportedError, "'nf4'"),
        (TensorInfo("w", (33,), "q8_0", 34), UnsupportedError, "33"),
        (TensorInfo("w", (4,), "f32", 15), UsageError, "15 bytes were announced"),
    ],
)
def test_tensors_that_gguf_cannot_hold(tensor: TensorInfo, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        header_bytes({}, [tensor])


def test_a_name_of_63_bytes_is_the_longest(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, {"n" * 63: np.float32([1])})
    assert list(GgufSource(tmp_path / "m.gguf").tensors) == ["n" * 63]


def test_a_tensor_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        header_bytes({}, [TensorInfo("w", (4,), "f32", 16)] * 2)


@pytest.mark.parametrize(
    "value",
    [
        Value(ValueType.STRING, 3),
        Value(ValueType.UINT32, "3"),
        Value(ValueType.BOOL, 1),
        Value(ValueType.UINT8, 300),
        Value(ValueType.UINT8, True),
        Value(ValueType.FLOAT32, array([1]).value),
    ],
)
def test_values_of_another_type_are_refused(value: Value) -> None:
    with pytest.raises(UsageError):
        header_bytes({"k": value}, [])


def test_a_scalar_is_stored_as_one_weight(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, {"s": np.array(2.5, np.float32)})
    source = GgufSource(tmp_path / "m.gguf")
    assert source.tensors["s"].shape == (1,)
    assert source.rows("s").item() == 2.5
