"""safetensors: what the real package writes is read, what it would reject is refused, what we lay out it reads."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch

from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.containers.safetensors_header import DTYPES, dtype_name
from bitsmith.containers.safetensors_layout import INDEX_NAME, Entry, safetensors_files, safetensors_layout
from bitsmith.errors import FileError, UnsupportedError, UsageError

REFERENCE = Path(__file__).parents[2] / "bitsmith" / "reference"


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header (JSON bytes or an object), with another header length if given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[object], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class TestReading:
    def test_the_reference_model(self) -> None:
        source = SafetensorsSource(REFERENCE)
        tensors = load_file(REFERENCE / "model.safetensors")
        assert source.tensors.keys() == tensors.keys()
        assert source.files == (REFERENCE / "model.safetensors",)
        assert source.metadata["format"] == "pt"
        for name, tensor in list(tensors.items())[:12]:
            info = source.tensors[name]
            assert (info.shape, info.layout, info.nbytes) == (tuple(tensor.shape), "bf16", tensor.nbytes)
            assert np.array_equal(source.rows(name), np.atleast_2d(tensor.float().numpy()))
        packed = source.packed("model.embed_tokens.weight", 10, 12)
        assert (packed.layout, packed.shape) == ("bf16", (2, 256))
        expected = tensors["model.embed_tokens.weight"][10:12].view(torch.uint8).numpy()
        assert np.array_equal(packed.parts["data"], expected)
        packed.parts["data"][:] = 0  # a fresh buffer

    @pytest.mark.parametrize(
        "dtype",
        [
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        ],
    )
    def test_every_dtype(self, tmp_path: Path, dtype: torch.dtype) -> None:
        tensor = torch.tensor([[1, 0, 3], [100, 7, 5]]).to(dtype)
        save_torch({"x": tensor}, tmp_path / "x.safetensors")
        source = SafetensorsSource(tmp_path / "x.safetensors")
        assert source.tensors["x"].layout in {name.lower() for name in DTYPES}
        assert np.array_equal(source.rows("x"), tensor.float().numpy())
        assert np.array_equal(source.rows("x", 1), tensor[1:].float().numpy())

    def test_scalars_vectors_stacks_and_nothing(self, tmp_path: Path) -> None:
        arrays = {
            "scalar": np.array(3, np.float32),
            "vector": np.arange(5, dtype=np.float16),
            "stack": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "empty": np.zeros((0, 7), np.float32),
        }
        save_file(arrays, tmp_path / "x.safetensors")
        source = SafetensorsSource(tmp_path)
        assert source.rows("scalar").tolist() == [[3.0]]
        assert source.rows("vector").tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]
        assert np.array_equal(source.rows("stack", 1, 5), arrays["stack"].reshape(6, 4)[1:5])
        assert source.packed("stack").shape == (2, 3, 4)
        assert source.rows("empty").shape == (0, 7)

    def test_no_tensors(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(raw({}))
        assert not SafetensorsSource(tmp_path).tensors

    @pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 4), (2, 1)])
    def test_rows_that_do_not_exist(self, tmp_path: Path, start: int, stop: int) -> None:
        save_file({"x": np.zeros((3, 2), np.float32)}, tmp_path / "x.safetensors")
        source = SafetensorsSource(tmp_path)
        with pytest.raises(UsageError, match=f"rows {start} to {stop} of 'x' do not exist; it has 3"):
            source.rows("x", start, stop)
        with pytest.raises(UsageError, match="no tensor 'y'"):
            source.rows("y")

    def test_a_file_that_changes_after_opening(self, tmp_path: Path) -> None:
        file = tmp_path / "x.safetensors"
        save_file({"x": np.zeros((3, 2), np.float32)}, file)
        source = SafetensorsSource(file)
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(FileError, match="was replaced or changed since it was opened, before 'x'"):
            source.rows("x")
        save_file({"x": np.ones((3, 2), np.float32)}, tmp_path / "other")
        os.utime(tmp_path / "other", (1, 1))
        os.replace(tmp_path / "other", file)
        with pytest.raises(FileError, match="was replaced or changed since it was opened, before 'x'"):
            source.rows("x")
        file.unlink()
        with pytest.raises(FileError, match="reading 'x' failed: No such file"):
            source.rows("x")


TWO = {"a": entry(0, 4, [4]), "b": entry(4, 6, [2])}
BAD = {
    "empty": (b"", "has 0 bytes, too few"),
    "seven bytes": (b"1234567", "has 7 bytes, too few"),
    "header length lies": (raw(TWO, bytes(6), 10_000), "says its header has 10000 bytes, but the file has"),
    "header length absurd": (raw(TWO, bytes(6), 2**63), "says its header has 9223372036854775808 bytes"),
    "header length zero": (raw(b"", bytes(8)), "says its header has 0 bytes"),
    "not a header": (raw(b"PK\x03\x04 something else"), "not a safetensors file: its header begins with"),
    "not JSON": (raw(b'{"a": '), "its header: expected JSON in UTF-8"),
    "not UTF-8": (raw(b'{"\xff\xfe": 1}'), "its header: expected JSON in UTF-8"),
    "two objects": (raw(b"{} {}"), "its header: expected JSON in UTF-8"),
    "nested": (raw(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nests too deeply"),
    "nested objects": (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nests too deeply"),
    "huge number": (
        raw(b'{"a":{"dtype":"U8","shape":[' + b"9" * 9999 + b'],"data_offsets":[0,0]}}'),
        "expected JSON in UTF-8",
    ),
    "duplicate": (raw(b'{"a":' + json.dumps(entry(0, 1, [1])).encode() + b',"a":1}', b"x"), "two entries named 'a'"),
    "duplicate key": (
        raw(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "two entries named 'dtype'",
    ),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "__metadata__ must map strings to strings"),
    "metadata no object": (raw({"__metadata__": []}), "__metadata__ must map strings to strings"),
    "no entry": (raw({"a": 3}), "entry 'a': expected dtype, shape and data_offsets"),
    "no shape": (raw({"a": {"dtype": "U8", "data_offsets": [0, 0]}}), "entry 'a': expected dtype, shape"),
    "unknown dtype": (
        raw({"a": entry(0, 4, [4], "F7")}, bytes(4)),
        "entry 'a' has the unknown dtype 'F7'; known: F64",
    ),
    "dtype a list": (raw({"a": {**entry(0, 4, [4]), "dtype": []}}, bytes(4)), r"unknown dtype \[\]"),
    "negative shape": (raw({"a": entry(0, 4, [-4])}, bytes(4)), "entry 'a': shape must be a list of sizes"),
    "shape of floats": (raw({"a": entry(0, 4, [4.0])}, bytes(4)), "entry 'a': shape must be"),
    "shape of booleans": (raw({"a": entry(0, 1, [True])}, bytes(1)), "entry 'a': shape must be"),
    "shape overflows": (raw({"a": entry(0, 0, [2**62, 2**62, 0])}), "entry 'a': shape must be"),
    "shape wraps to zero": (raw({"a": entry(0, 0, [2**40, 2**40])}), "takes 1208925819614629174706176 bytes"),
    "offsets backwards": (raw({"a": entry(4, 0, [4])}, bytes(4)), r"data_offsets must be \[begin, end\]"),
    "offsets short": (raw({"a": {**entry(0, 4, [4]), "data_offsets": [0]}}, bytes(4)), "data_offsets must be"),
    "size disagrees": (raw({"a": entry(0, 4, [3])}, bytes(4)), r"U8 of shape \[3\] takes 3 bytes, data_offsets give 4"),
    "overlap": (
        raw({"a": entry(0, 4, [4]), "b": entry(3, 5, [2])}, bytes(5)),
        "'b' begins 1 bytes before the end of 'a'",
    ),
    "same place": (raw({"a": entry(0, 4, [4]), "b": entry(0, 4, [4])}, bytes(4)), "must not overlap"),
    "gap": (
        raw({"a": entry(0, 4, [4]), "b": entry(5, 7, [2])}, bytes(7)),
        "1 bytes before the data of 'b' belong to no",
    ),
    "gap at the start": (raw({"a": entry(1, 5, [4])}, bytes(5)), "1 bytes before the data of 'a' belong to no entry"),
    "out of range": (raw({"a": entry(0, 4, [4]), "b": entry(4, 4000, [3996])}, bytes(6)), "truncated: the data of 'b'"),
    "truncated": (raw(TWO, bytes(5)), "is truncated: the data of 'b' ends at byte"),
    "too long": (raw(TWO, bytes(7)), "1 bytes after the data of 'b' belong to no entry"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        SafetensorsSource(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 700


def test_the_real_package_refuses_them_too(tmp_path: Path) -> None:
    """Nothing is refused here that others accept, but for keys given twice and zero-sized absurdities."""
    accepted = []
    for name, (content, _) in BAD.items():
        (tmp_path / "x.safetensors").write_bytes(content)
        try:
            with safe_open(tmp_path / "x.safetensors", "np"):
                accepted.append(name)
        except (SafetensorError, OSError):
            pass
    assert set(accepted) <= {"duplicate", "duplicate key", "shape overflows"}


def shards(folder: Path) -> dict[str, object]:
    """Two shards with an index; the index, to be spoilt."""
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}, folder / "model-1.safetensors")
    save_file({"c": np.full((1, 2), 2, np.float16)}, folder / "model-2.safetensors", {"k": "v"})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return index


class TestFolders:
    def test_shards(self, tmp_path: Path) -> None:
        shards(tmp_path)
        source = SafetensorsSource(tmp_path)
        assert list(source.tensors) == ["a", "b", "c"]
        assert source.rows("c").tolist() == [[2.0, 2.0]]
        assert [file.name for file in source.files] == ["model-1.safetensors", "model-2.safetensors"]
        assert source.metadata == {"k": "v"}
        assert source.file_metadata[source.files[0]] == {}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"a": "model-3.safetensors"}, "'a' lies in model-3.safetensors, which is missing; download"),
            ({"d": "model-1.safetensors"}, "'d' should lie in model-1.safetensors, but no shard has it"),
            ({"a": "model-2.safetensors"}, "'a' should lie in model-2.safetensors, but it lies in model-1.safetensors"),
            ({"a": "../model-1.safetensors"}, "which is not a plain file name"),
            ({"a": "/etc/passwd"}, "which is not a plain file name"),
            ({"a": ".."}, "which is not a plain file name"),
            ({"a": 3}, 'must hold "weight_map"'),
        ],
    )
    def test_an_index_that_lies(self, tmp_path: Path, change: dict[str, object], message: str) -> None:
        index = shards(tmp_path)
        index["weight_map"] |= change
        (tmp_path / INDEX_NAME).write_text(json.dumps(index))
        with pytest.raises(FileError, match=message):
            SafetensorsSource(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected JSON in UTF-8"),
            ("[" * 100_000, "expected JSON in UTF-8"),
            ("[]", "expected a JSON object"),
            ('{"weight_map": {}}', 'must hold "weight_map"'),
        ],
    )
    def test_an_index_that_is_none(self, tmp_path: Path, text: str, message: str) -> None:
        shards(tmp_path)
        (tmp_path / INDEX_NAME).write_text(text)
        with pytest.raises(FileError, match=message):
            SafetensorsSource(tmp_path)

    def test_a_tensor_in_two_shards(self, tmp_path: Path) -> None:
        shards(tmp_path)
        save_file({"c": np.zeros(2, np.float32), "a": np.zeros(2, np.float32)}, tmp_path / "model-2.safetensors")
        with pytest.raises(FileError, match=r"'a' lies in model-1\.safetensors and in model-2\.safetensors"):
            SafetensorsSource(tmp_path)

    def test_a_damaged_shard_is_named(self, tmp_path: Path) -> None:
        shards(tmp_path)
        file = tmp_path / "model-2.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(FileError, match=r"model-2\.safetensors is truncated: the data of 'c'"):
            SafetensorsSource(tmp_path)

    def test_model_safetensors_comes_first(self, tmp_path: Path) -> None:
        shards(tmp_path)
        save_file({"whole": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
        assert list(SafetensorsSource(tmp_path).tensors) == ["whole"]

    def test_several_files_without_an_index(self, tmp_path: Path) -> None:
        shards(tmp_path)
        (tmp_path / INDEX_NAME).unlink()
        with pytest.raises(FileError, match=r"holds 2 safetensors files .* but no model\.safetensors\.index\.json"):
            SafetensorsSource(tmp_path)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth"])
    def test_pickles_are_never_read(self, tmp_path: Path, name: str) -> None:
        torch.save({"a": torch.zeros(2)}, tmp_path / name)
        for path in (tmp_path, tmp_path / name):
            with pytest.raises(FileError, match=f"{name} is a pickled checkpoint.*save_pretrained"):
                SafetensorsSource(path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="holds no safetensors file"):
            SafetensorsSource(tmp_path)
        with pytest.raises(FileError, match="neither a file nor a folder"):
            SafetensorsSource(tmp_path / "no")


def fill(layout: object, data: dict[tuple[str, str], bytes]) -> bytes:
    content = bytearray(layout.size)
    content[: len(layout.header)] = layout.header
    for region in layout.regions:
        content[region.offset : region.offset + region.nbytes] = data[region.tensor, region.part]
    return bytes(content)


class TestLayout:
    def test_the_real_package_loads_it(self, tmp_path: Path) -> None:
        arrays = {
            "z": np.arange(6, dtype=np.float32).reshape(2, 3),
            "a": np.arange(3, dtype=np.float16),
            'é"\\': np.array([True, False]),
        }
        parts = [Entry(name, "data", name, dtype_name(x.dtype), x.shape) for name, x in arrays.items()]
        layout = safetensors_layout("x.safetensors", {"b": "2", "a": "ü"}, parts)
        assert len(layout.header) % 8 == 0
        assert [region.tensor for region in layout.regions] == list(arrays)
        file = tmp_path / layout.filename
        file.write_bytes(fill(layout, {(name, "data"): x.tobytes() for name, x in arrays.items()}))
        assert file.stat().st_size == layout.size
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"a": "ü", "b": "2"}
            for name, x in arrays.items():
                assert np.array_equal(opened.get_tensor(name), x)
        assert safetensors_layout("x.safetensors", {"a": "ü", "b": "2"}, parts) == layout
        assert list(SafetensorsSource(file).tensors) == list(arrays)

    def test_dtype_names_in_either_case(self) -> None:
        for name, dtype in DTYPES.items():
            assert dtype_name(dtype) == name
            assert Entry("t", "data", "t", name.lower(), (3,)).nbytes == 3 * dtype.itemsize
        assert dtype_name(np.dtype(ml_dtypes.bfloat16)) == "BF16"
        with pytest.raises(UsageError, match="no dtype 'q4_k'"):
            safetensors_layout("x", {}, [("t", "data", "t", "q4_k", (3,))])

    @pytest.mark.parametrize("names", [("a", "a"), ("__metadata__",)])
    def test_names_must_differ(self, names: tuple[str, ...]) -> None:
        with pytest.raises(UsageError, match="two entries would be named"):
            safetensors_layout("x", {}, [(name, "data", name, "U8", (1,)) for name in names])

    def test_a_header_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bitsmith.containers.safetensors_layout.HEADER_LIMIT", 1000)
        with pytest.raises(UnsupportedError, match="max_shard_size="):
            safetensors_layout("x", {"long": "x" * 1000}, [])

    def test_shards(self, tmp_path: Path) -> None:
        sizes = {"a": 10, "b": 10, "big": 50, "c": 5}
        parts = [
            Entry(t, p, f"{t}.{p}", "U8", (n,)) for t, size in sizes.items() for p, n in (("x", size - 1), ("y", 1))
        ]
        layouts, index = safetensors_files(parts, lambda own: {"n": str(len(own))}, max_shard_bytes=20)
        assert [[r.tensor for r in layout.regions] for layout in layouts] == [
            ["a", "a", "b", "b"],
            ["big"] * 2,
            ["c"] * 2,
        ]
        assert layouts[2].filename == "model-00003-of-00003.safetensors"
        for layout in layouts:
            (tmp_path / layout.filename).write_bytes(
                fill(layout, {(r.tensor, r.part): bytes(r.nbytes) for r in layout.regions})
            )
        (tmp_path / INDEX_NAME).write_bytes(index)
        source = SafetensorsSource(tmp_path)
        assert [info.nbytes for info in source.tensors.values()] == [9, 1, 9, 1, 49, 1, 4, 1]
        assert [said["n"] for said in source.file_metadata.values()] == ["4", "2", "2"]
        assert json.loads(index)["metadata"] == {"total_size": 75}

    def test_one_file_needs_no_index(self) -> None:
        metadata: Callable[[object], dict[str, str]] = lambda own: {}  # noqa: E731
        for limit in (None, 100):
            layouts, index = safetensors_files([Entry("a", "data", "a", "U8", (9,))], metadata, max_shard_bytes=limit)
            assert [layout.filename for layout in layouts] == ["model.safetensors"]
            assert index is None
        assert len(safetensors_files([], metadata)[0]) == 1
