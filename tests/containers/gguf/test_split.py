import shutil
from pathlib import Path

import numpy as np
import pytest

from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, i32, string, u16, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.gguf.split import split_name, split_parts, split_prefix
from bitsmith.containers.gguf.writer import gguf_layout, header_bytes
from bitsmith.containers.manifest import SET_KEY
from bitsmith.errors import FileError, UsageError
from bitsmith.quant.tensor import TensorInfo
from tests.gguf_files import random_stored, write_gguf

KEYS = {"general.architecture": string("llama"), "tokens": array(["a", "b"])}
TENSORS = {f"blk.{i}.w": random_stored("f16", (16, 64), i) for i in range(5)}  # 2048 bytes each


def infos(count: int = 5) -> list[TensorInfo]:
    return [TensorInfo(f"blk.{i}.w", (16, 64), "f16", 2048) for i in range(count)]


@pytest.fixture
def split_set(tmp_path: Path) -> list[Path]:
    return write_gguf(tmp_path / "m.gguf", KEYS, TENSORS, max_shard_bytes=5000)


def test_files_are_named_and_bounded(split_set: list[Path]) -> None:
    assert [path.name for path in split_set] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert all(path.stat().st_size <= 5000 for path in split_set)


def test_any_file_opens_the_set(split_set: list[Path]) -> None:
    for path in split_set:
        source = GgufSource(path)
        assert source.path == path
        assert source.files == tuple(split_set)
        assert dict(source.keys) == KEYS
        assert list(source.tensors) == list(TENSORS)
        for name, content in TENSORS.items():
            assert np.array_equal(source.packed(name).parts["data"], content.data)


def test_first_file_holds_the_metadata_and_every_file_its_place(split_set: list[Path]) -> None:
    layouts = gguf_layout("m.gguf", KEYS, infos(), max_shard_bytes=5000)
    for number, layout in enumerate(layouts):
        assert (b"tokens" in layout.header) == (number == 0)
        assert layout.header == split_set[number].read_bytes()[: len(layout.header)]


def test_what_fits_one_file_is_one_file() -> None:
    (whole,) = gguf_layout("m.gguf", KEYS, infos())
    assert gguf_layout("m.gguf", KEYS, infos(), max_shard_bytes=whole.size) == [whole]
    assert len(gguf_layout("m.gguf", KEYS, infos(), max_shard_bytes=whole.size - 1)) == 2


@pytest.mark.parametrize("limit", range(2400, 11000, 130))
def test_every_bound_is_kept(limit: int) -> None:
    layouts = gguf_layout("m.gguf", KEYS, infos(), max_shard_bytes=limit)
    assert max(layout.size for layout in layouts) <= limit
    assert [r.tensor for layout in layouts for r in layout.regions] == [info.name for info in infos()]


def test_metadata_goes_alone_where_no_tensor_fits_beside_it(tmp_path: Path) -> None:
    keys = {"general.architecture": string("llama"), "long": string("x" * 3000)}
    paths = write_gguf(tmp_path / "m.gguf", keys, TENSORS, max_shard_bytes=4500)
    source = GgufSource(paths[0])
    assert dict(source.keys) == keys
    assert len(gguf_layout("m.gguf", keys, infos(), max_shard_bytes=4500)[0].regions) == 0
    assert np.array_equal(source.packed("blk.4.w").parts["data"], TENSORS["blk.4.w"].data)


def test_bounds_that_are_too_small_are_refused() -> None:
    with pytest.raises(UsageError, match=r"tensor 'blk.0.w'"):
        gguf_layout("m.gguf", KEYS, infos(), max_shard_bytes=2100)
    with pytest.raises(UsageError, match="metadata alone"):
        gguf_layout("m.gguf", KEYS, infos(), max_shard_bytes=100)


def test_an_unusual_alignment_is_in_every_file(tmp_path: Path) -> None:
    keys = {"general.alignment": u32(128), **KEYS}
    paths = write_gguf(tmp_path / "m.gguf", keys, TENSORS, max_shard_bytes=5000)
    assert len(paths) > 1
    source = GgufSource(paths[1])
    assert all(np.array_equal(source.packed(n).parts["data"], c.data) for n, c in TENSORS.items())
    assert all(path.stat().st_size % 128 == 0 for path in paths)


def test_a_set_written_again_drops_its_old_split_keys(split_set: list[Path], tmp_path: Path) -> None:
    source = GgufSource(split_set[0])
    (path,) = write_gguf(tmp_path / "one.gguf", {**source.keys, "split.count": u16(3)}, TENSORS)
    assert dict(GgufSource(path).keys) == KEYS
    assert gguf_layout("x-00001-of-00009.gguf", KEYS, infos(), max_shard_bytes=5000)[0].filename == (
        "x-00001-of-00003.gguf"
    )


def test_a_missing_file_is_named(split_set: list[Path]) -> None:
    split_set[1].unlink()
    for path in (split_set[0], split_set[2]):
        with pytest.raises(FileError, match=r"m-00002-of-00003\.gguf is missing"):
            GgufSource(path)


def test_a_renamed_file_is_noticed(split_set: list[Path]) -> None:
    split_set[0].rename(split_set[0].with_name("other.gguf"))
    with pytest.raises(FileError, match=r"one of 3 files.*other-00001-of-00003\.gguf"):
        GgufSource(split_set[0].with_name("other.gguf"))


def test_a_file_in_the_place_of_another_is_noticed(split_set: list[Path]) -> None:
    shutil.copy(split_set[2], split_set[1])
    with pytest.raises(FileError, match=r"expected part 2 of 3.*found part 3 of 3"):
        GgufSource(split_set[0])


def test_files_of_different_sets_are_noticed(split_set: list[Path], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    more = {**TENSORS, "extra": random_stored("f16", (16, 64))}
    others = write_gguf(tmp_path / "more" / "m.gguf", KEYS, more, max_shard_bytes=5000)
    shutil.copy(others[2], split_set[2])
    with pytest.raises(FileError, match=r"split\.tensors\.count"):
        GgufSource(split_set[0])
    renamed = {name.replace("blk.4", "blk.0"): content for name, content in TENSORS.items() if "blk.0" not in name}
    again = write_gguf(tmp_path / "more" / "m.gguf", KEYS, {"y": TENSORS["blk.0.w"], **renamed}, max_shard_bytes=5000)
    shutil.copy(again[2], split_set[2])
    with pytest.raises(FileError, match=r"'blk\.0\.w' is already in another file"):
        GgufSource(split_set[0])


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"split.no": u16(0), "split.count": u16(2)},
        {"split.no": u16(1), "split.count": u16(2), "split.tensors.count": i32(1)},
        {"split.no": u16(0), "split.count": u16(3), "split.tensors.count": i32(1)},
        {"split.no": u16(0), "split.count": string("2"), "split.tensors.count": i32(1)},
        {"split.no": Value(ValueType.BOOL, False), "split.count": u16(2), "split.tensors.count": i32(1)},
    ],
)
def test_keys_that_contradict_the_name(tmp_path: Path, keys: dict[str, Value]) -> None:
    for number in (1, 2):
        (tmp_path / split_name("m", number, 2)).write_bytes(header_bytes(keys, []))
    with pytest.raises(FileError):
        GgufSource(tmp_path / split_name("m", 1, 2))


def test_a_set_of_one_file_is_a_file(tmp_path: Path) -> None:
    for name in ("m-00001-of-00001.gguf", "m.gguf"):
        write_gguf(tmp_path / "x.gguf", KEYS, TENSORS)
        (tmp_path / "x.gguf").rename(tmp_path / name)
        assert GgufSource(tmp_path / name).files == (tmp_path / name,)


def test_names() -> None:
    assert split_parts("a-b-00002-of-00010.gguf") == ("a-b", 2, 10)
    assert split_parts("a-2-of-10.gguf") is None
    assert split_prefix("m.gguf") == split_prefix(split_name("m", 1, 2)) == "m"


@pytest.mark.parametrize(
    ("marks", "mixed"),
    [
        (["a", "a", "a"], None),
        ([None, None, None], None),
        (["a", None, None], None),  # other programs copy the keys of the first file alone
        (["a", "b", "b"], 2),
        (["a", "a", "b"], 3),
        (["a", "a", None], 3),
        ([None, "a", "a"], 2),
        ([None, None, "a"], 3),
    ],
)
def test_files_carry_one_identifier(tmp_path: Path, marks: list[str | None], mixed: int | None) -> None:
    layouts = gguf_layout("m.gguf", KEYS, infos(), max_shard_bytes=5000)
    for number, (layout, mark) in enumerate(zip(layouts, marks, strict=True)):
        further = {} if mark is None else {SET_KEY: string(mark)}
        names = [f"blk.{i}.w" for i in range(5) if any(r.tensor == f"blk.{i}.w" for r in layout.regions)]
        held = [info for info in infos() if info.name in names]
        keys = {**(KEYS if number == 0 else {}), "split.no": u16(number), "split.count": u16(3)}
        header = header_bytes({**keys, "split.tensors.count": i32(5), **further}, held)
        (tmp_path / layout.filename).write_bytes(header + bytes(2048 * len(held)))
    if mixed is None:
        assert len(GgufSource(tmp_path / layouts[1].filename).tensors) == 5
    else:
        with pytest.raises(FileError, match=rf"m-00001-of-00003\.gguf and .*m-0000{mixed}-of-.* two different outputs"):
            GgufSource(tmp_path / layouts[1].filename)


def test_an_identifier_of_another_type_is_none(tmp_path: Path) -> None:
    paths = write_gguf(tmp_path / "m.gguf", {**KEYS, SET_KEY: array(["a", "b"])}, TENSORS, max_shard_bytes=5000)
    assert len(GgufSource(paths[0]).tensors) == 5
