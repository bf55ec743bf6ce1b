import threading
from pathlib import Path

import numpy as np
import pytest

from bitsmith.containers.gguf.metadata_values import GgufArray, Value, ValueType, array, f32, string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.gguf.types import TYPES
from bitsmith.errors import FileError, UsageError
from tests.gguf_files import Stored, random_stored, raw_array, raw_file, raw_key, raw_string, raw_tensor, write_gguf


def test_shapes_are_row_major_and_order_is_kept(tmp_path: Path) -> None:
    tensors = {"b": np.ones((3, 5), np.float32), "a": np.ones(7, np.float16), "c": np.ones((2, 3, 4), np.float32)}
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    source = GgufSource(tmp_path / "m.gguf")
    assert [(name, info.shape, info.layout) for name, info in source.tensors.items()] == [
        ("b", (3, 5), "f32"),
        ("a", (7,), "f16"),
        ("c", (2, 3, 4), "f32"),
    ]
    assert source.tensors["c"].nbytes == 96
    assert source.files == (tmp_path / "m.gguf",)


def test_slabs_of_rows_are_the_rows(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((2, 9, 8), np.float32)
    write_gguf(tmp_path / "m.gguf", {}, {"x": np.zeros(3, np.float32), "w": w})
    source = GgufSource(tmp_path / "m.gguf")
    flat = w.reshape(18, 8)
    for start, stop in [(0, 18), (4, 11), (17, 18), (5, 5)]:
        assert np.array_equal(source.rows("w", start, stop), flat[start:stop])
        packed = source.packed("w", start, stop)
        assert packed.parts["data"].tobytes() == flat[start:stop].tobytes()
        assert packed.shape == ((2, 9, 8) if stop - start == 18 else (stop - start, 8))
    assert source.rows("x").shape == (1, 3)


def test_every_type_has_its_bytes(tmp_path: Path) -> None:
    tensors = {name: random_stored(name, (3, 2 * kind.block), kind.number) for name, kind in TYPES.items()}
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    source = GgufSource(tmp_path / "m.gguf")
    for name, content in tensors.items():
        assert source.tensors[name].layout == name
        assert np.array_equal(source.packed(name).parts["data"], content.data)


def test_metadata_is_plain_and_keys_are_typed(tmp_path: Path) -> None:
    nested = array([array([1, 2]), array(["a"])])
    keys = {
        "general.architecture": string("llama"),
        "general.file_type": u32(15),
        "tokens": array(["", "é", "a\0b"]),
        "scores": array(np.float32([1, 2])),
        "nested": nested,
        "eps": f32(1e-5),
    }
    write_gguf(tmp_path / "m.gguf", keys, {})
    source = GgufSource(tmp_path / "m.gguf")
    assert dict(source.keys) == keys
    assert list(source.keys) == list(keys)
    assert source.architecture == "llama"
    assert source.file_type == 15
    assert source.metadata["tokens"] == ["", "é", "a\0b"]
    assert source.metadata["scores"].dtype == np.float32
    assert [list(inner) for inner in source.metadata["nested"]] == [[1, 2], ["a"]]
    assert source.metadata["eps"] == float(np.float32(1e-5))


def test_bytes_of_a_string_that_are_not_utf8_survive(tmp_path: Path) -> None:
    content = raw_file(
        [raw_key("token", 8, raw_string(b"\xff\xfe")), raw_key("all", 9, raw_array(8, 1, raw_string(b"\x80")))]
    )
    (tmp_path / "a.gguf").write_bytes(content)
    source = GgufSource(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", source.keys, {})
    assert (tmp_path / "b.gguf").read_bytes() == content


def test_version_2_is_read(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.float32).tobytes()
    (tmp_path / "m.gguf").write_bytes(raw_file(tensors=[raw_tensor("w", [4])], data=data, version=2))
    source = GgufSource(tmp_path / "m.gguf")
    assert source.version == 2
    assert source.rows("w").tolist() == [[0, 1, 2, 3]]


def test_last_tensor_need_not_be_padded(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(raw_file(tensors=[raw_tensor("w", [1])], data=b"\0\0\x80\x3f"))
    assert GgufSource(tmp_path / "m.gguf").rows("w").item() == 1.0


def test_alignment_of_the_file_is_used(tmp_path: Path) -> None:
    keys = {"general.alignment": u32(256)}
    write_gguf(tmp_path / "m.gguf", keys, {"a": np.float32([1]), "b": np.float32([2])})
    source = GgufSource(tmp_path / "m.gguf")
    assert source.alignment == 256
    assert source.rows("b").item() == 2.0
    assert (tmp_path / "m.gguf").stat().st_size == 3 * 256


def test_threads_read_at_once(tmp_path: Path) -> None:
    w = np.random.default_rng(1).standard_normal((64, 256), np.float32)
    write_gguf(tmp_path / "m.gguf", {}, {"w": w})
    source = GgufSource(tmp_path / "m.gguf")
    wrong: list[int] = []

    def read(first: int) -> None:
        for row in range(first, 64, 4):
            if not np.array_equal(source.rows("w", row, row + 1)[0], w[row]):
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_wrong_calls_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, {"w": np.zeros((2, 4), np.float32)})
    source = GgufSource(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="no tensor 'v'"):
        source.rows("v")
    for start, stop in [(0, 3), (-1, 1), (2, 1)]:
        with pytest.raises(UsageError, match="it has 2"):
            source.packed("w", start, stop)
    source.close()
    with pytest.raises(UsageError, match="was closed"):
        source.rows("w")


def test_a_file_that_shrinks_after_opening_is_noticed(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, {"w": np.zeros((64, 64), np.float32)})
    source = GgufSource(tmp_path / "m.gguf")
    with open(tmp_path / "m.gguf", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(FileError, match=r"tensor 'w'.*ends at 1000 bytes"):
        source.rows("w")


def test_a_file_replaced_after_opening_is_read_as_it_was(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, {"w": np.float32([1])})
    source = GgufSource(tmp_path / "m.gguf")
    write_gguf(tmp_path / "new.gguf", {}, {"w": np.float32([2])})
    (tmp_path / "new.gguf").rename(tmp_path / "m.gguf")
    assert source.rows("w").item() == 1.0


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match="heck the path"):
        GgufSource(tmp_path / name)


def test_gguf_arrays_compare_by_type_and_bytes() -> None:
    one = array(np.float32([1, np.nan]))
    assert one == array(np.float32([1, np.nan]))
    assert hash(one) == hash(array(np.float32([1, np.nan])))
    assert one != array(np.float64([1, np.nan]))
    assert one != array(np.float32([1, 2]))
    assert array([], ValueType.STRING) != array([], ValueType.INT32)
    assert GgufArray(ValueType.STRING, ("a",)) != "a"


def test_values_that_do_not_fit_are_refused() -> None:
    for call in (lambda: u32(-1), lambda: u32(1 << 32), lambda: array([300], ValueType.UINT8), lambda: array([])):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(UsageError, match=r"shape \(1, 1\)"):
        array(np.zeros((1, 1), np.float32))
    assert array([True, False]) == array(np.array([True, False]))
    assert array([1, -1]) == array(np.int32([1, -1]))
    assert array([0.1]) == array(np.float32([0.1]))
    assert Value(ValueType.UINT32, 3) == u32(3)


def test_a_tensor_of_stored_bytes_round_trips(tmp_path: Path) -> None:
    content = Stored("q8_0", (2, 32), np.arange(68, dtype=np.uint8).reshape(2, 34))
    write_gguf(tmp_path / "m.gguf", {}, {"w": content})
    assert np.array_equal(GgufSource(tmp_path / "m.gguf").packed("w", 1, 2).parts["data"], content.data[1:])
