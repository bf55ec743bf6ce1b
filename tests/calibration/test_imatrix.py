"""Importance files in both formats: read as written, read as llama.cpp means them, and lies refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from bitsmith.calibration.imatrix import Entry, Imatrix, imatrix_file, read_imatrix, record_of
from bitsmith.containers.gguf.metadata_values import string, u32
from bitsmith.errors import FileError, UsageError
from tests.gguf_files import write_gguf


def sample() -> Imatrix:
    random = np.random.default_rng(2)
    entries = {
        "blk.1.ffn_down_exps.weight": Entry(random.random((3, 8), np.float32), np.array([5, 0, 700])),
        "blk.0.attn_q.weight": Entry(random.random((1, 6), np.float32) * 1e4, np.array([1000])),
    }
    return Imatrix(entries, ("wiki.txt",), 4, 256)


def write(imatrix: Imatrix, path: Path) -> Path:
    layout, data = imatrix_file(imatrix, path.name)
    content = bytearray(layout.size)
    content[: len(layout.header)] = layout.header
    for region in layout.regions:
        content[region.offset : region.offset + region.nbytes] = data[region.tensor].tobytes()
    path.write_bytes(content)
    return path


def dat(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts += [struct.pack("<i", len(name)), name, struct.pack("<ii", calls, len(values))]
        parts.append(np.array(values, "<f4").tobytes())
    return b"".join(parts) + tail


def test_gguf_is_read_as_written(tmp_path: Path) -> None:
    imatrix = sample()
    found = read_imatrix(write(imatrix, tmp_path / "x.gguf"))
    assert (found.datasets, found.chunks, found.chunk_size) == (("wiki.txt",), 4, 256)
    assert [*found.entries] == sorted(imatrix.entries)
    for name, entry in imatrix.entries.items():
        np.testing.assert_array_equal(found.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(found.entries[name].counts, entry.counts)


def test_importance_is_the_mean_square() -> None:
    entries = sample().entries
    plain, experts = entries["blk.0.attn_q.weight"], entries["blk.1.ffn_down_exps.weight"]
    np.testing.assert_array_equal(plain.importance, plain.sums / np.float32(1000))
    np.testing.assert_array_equal(experts.importance[1], np.ones(8, np.float32))  # never routed to
    np.testing.assert_array_equal(experts.importance[2], experts.sums[2] / np.float32(700))


def test_dat_keeps_the_importance(tmp_path: Path) -> None:
    imatrix = sample()
    found = read_imatrix(write(imatrix, tmp_path / "x.dat"))
    assert (found.datasets, found.chunks, found.chunk_size) == (("wiki.txt",), 4, 0)
    for name, entry in imatrix.entries.items():
        np.testing.assert_allclose(found.entries[name].importance.reshape(-1), entry.importance.reshape(-1), rtol=1e-6)
    assert found.entries["blk.0.attn_q.weight"].counts.tolist() == [4]  # 1000 tokens in windows of 256


def test_dat_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    tail = struct.pack("<ii", 7, 5) + b"a.txt"
    raw = dat((b"blk.0.attn_q.weight", 2, [2.0, 8.0]), tail=tail)
    path = tmp_path / "x.dat"
    path.write_bytes(raw)
    found = read_imatrix(path)
    assert found.entries["blk.0.attn_q.weight"].importance.tolist() == [[1.0, 4.0]]
    assert (found.datasets, found.chunks) == (("a.txt",), 7)
    layout, data = imatrix_file(found, "y.dat")
    assert data["imatrix"].tobytes() == raw
    assert layout.size == len(raw)


@pytest.mark.parametrize("tail", [b"", struct.pack("<i", 3), struct.pack("<ii", 3, 100), struct.pack("<ii", 3, -1)])
def test_a_dat_file_may_end_after_its_entries(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(dat((b"blk.0.attn_q.weight", 3, [3.0, 6.0]), tail=tail))
    found = read_imatrix(path)
    assert (found.chunks, found.datasets) == (3, ())


def test_no_chunks_means_values_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(dat((b"blk.0.attn_q.weight", 0, [3.0, 6.0])))
    assert read_imatrix(path).entries["blk.0.attn_q.weight"].importance.tolist() == [[3.0, 6.0]]


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "ends at 0 bytes"),
        (struct.pack("<i", 0), "claims 0 entries"),
        (struct.pack("<i", 1 << 30), "claims 1073741824 entries, but 0 bytes follow"),
        (struct.pack("<ii", 1, 1 << 30) + bytes(20), "claims 1073741824 bytes of a name"),
        (dat((b"a", 1, [1.0]))[:-2], "claims 1 values, but 2 bytes follow"),
        (dat((b"a", 1, [])), "claims 0 values"),
        (dat((b"a", 1, [np.nan])), "a: its sums of squares must be finite"),
        (dat((b"a", 1, [-1.0])), "a: its sums of squares must be finite and not negative"),
    ],
)
def test_dat_files_that_lie(tmp_path: Path, raw: bytes, named: str) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(raw)
    with pytest.raises(FileError, match=rf"x\.dat.*{named}"):
        read_imatrix(path)


KEYS = {"general.type": string("imatrix"), "imatrix.chunk_count": u32(1), "imatrix.chunk_size": u32(16)}
ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
    ("keys", "tensors", "named"),
    [
        ({"general.type": string("model")}, {"a.in_sum2": ONE}, "found a GGUF file of type 'model'"),
        ({}, {"token_embd.weight": ONE}, "expected an importance file"),
        (KEYS, {"a.counts": ONE}, "holds no .in_sum2 tensors"),
        (KEYS, {"a.in_sum2": ONE}, r"a: expected F32 .* found f32 \[1, 1\] and none"),
        (KEYS, {"a.in_sum2": ONE, "a.counts": ONE.astype(np.float16)}, "f16"),
        (KEYS, {"a.in_sum2": np.ones((2, 3), np.float32), "a.counts": ONE}, r"found f32 \[2, 3\] and f32 \[1, 1\]"),
        (KEYS, {"a.in_sum2": -ONE, "a.counts": ONE}, "not negative"),
        (KEYS, {"a.in_sum2": ONE, "a.counts": ONE * np.inf}, "its counts must be finite"),
        ({**KEYS, "imatrix.chunk_size": string("x")}, {"a.in_sum2": ONE, "a.counts": ONE}, "imatrix.chunk_size"),
    ],
)
def test_gguf_files_that_lie(tmp_path: Path, keys: dict, tensors: dict, named: str) -> None:
    write_gguf(tmp_path / "x.gguf", keys, tensors)
    with pytest.raises(FileError, match=rf"x\.gguf.*{named}"):
        read_imatrix(tmp_path / "x.gguf")


def test_a_missing_file_and_another_ending(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.dat: the importance file cannot be read"):
        read_imatrix(tmp_path / "none.dat")
    with pytest.raises(UsageError, match=r"ends in \.gguf, or in \.dat"):
        imatrix_file(sample(), "x.bin")


def test_the_record_is_of_the_bytes(tmp_path: Path) -> None:
    path = write(sample(), tmp_path / "x.gguf")
    record = record_of(path, read_imatrix(path))
    assert (record.source, record.tokens, record.context, record.seed) == ("x.gguf", 1000, 256, None)
    path = write(sample(), tmp_path / "x.dat")
    assert record_of(path, read_imatrix(path)).tokens == 0
    assert record.sha256 != record_of(path, read_imatrix(path)).sha256
