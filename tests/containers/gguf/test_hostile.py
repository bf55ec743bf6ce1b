"""Damaged and lying GGUF files: each is refused with a message that names the file and the place, and at once."""

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bitsmith.containers.gguf.metadata_values import array, f32, string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.errors import FileError, UnsupportedError
from tests.gguf_files import random_stored, raw_array, raw_file, raw_key, raw_string, raw_tensor, write_gguf

HUGE = 1 << 62
U32, STRING, ARRAY = 4, 8, 9


def refuse(path: Path, content: bytes, message: str, error: type[Exception] = FileError) -> None:
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        GgufSource(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def alignment(value: bytes, number: int = U32) -> bytes:
    return raw_key("general.alignment", number, value)


HEADERS = {
    "empty": (b"", "has 0"),
    "magic": (b"GGML" + bytes(60), r"magic bytes b'GGUF', found b'GGML'"),
    "only magic": (b"GGUF", "has 4"),
    "many tensors": (raw_file(counts=(HUGE, 0)), f"claims {HUGE} tensors"),
    "many keys": (raw_file(counts=(0, HUGE)), f"claims {HUGE} keys"),
    "negative": (raw_file(counts=(0, 2**64 - 1)), "keys"),
    "more keys than there are": (raw_file([raw_key("a", U32, bytes(4))], counts=(0, 2)), "key 2 of 2"),
    "key name": (raw_file([struct.pack("<Q", HUGE) + bytes(64)]), f"key 1 of 1: claims {HUGE} bytes of its name"),
    "empty key": (raw_file([raw_key("", U32, bytes(4))]), "its name is empty"),
    "key not utf-8": (raw_file([raw_key(b"\xff\xfe", U32, bytes(4))]), "not valid UTF-8"),
    "key twice": (raw_file([raw_key("a", U32, bytes(4))] * 2), "'a': is there twice"),
    "value type": (raw_file([raw_key("a", 13, bytes(4))]), "'a': expected a value type from 0 to 12, found 13"),
    "string": (raw_file([raw_key("a", STRING, struct.pack("<Q", HUGE))]), f"'a': a string claims {HUGE} bytes"),
    "string past the end": (raw_file([raw_key("a", STRING, struct.pack("<Q", 50) + b"x")]), "a string claims 50"),
    "bool": (raw_file([raw_key("a", 7, b"\2")]), "booleans of 0 or 1"),
    "bools": (raw_file([raw_key("a", ARRAY, raw_array(7, 3, b"\0\1\2"))]), "booleans of 0 or 1"),
    "item type": (raw_file([raw_key("a", ARRAY, raw_array(99, 1, bytes(8)))]), "found 99"),
    "numbers": (raw_file([raw_key("a", ARRAY, raw_array(10, HUGE))]), f"claims {HUGE} numbers"),
    "bytes": (raw_file([raw_key("a", ARRAY, raw_array(0, 1 << 30))]), "claims 1073741824 numbers"),
    "strings": (raw_file([raw_key("a", ARRAY, raw_array(STRING, HUGE))]), f"claims {HUGE} strings"),
    "a string of them": (
        raw_file([raw_key("a", ARRAY, raw_array(STRING, 2, raw_string("x") + struct.pack("<Q", HUGE)))]),
        f"a string claims {HUGE} bytes",
    ),
    "arrays": (raw_file([raw_key("a", ARRAY, raw_array(ARRAY, HUGE))]), f"claims {HUGE} arrays"),
    "nested": (raw_file([raw_key("a", ARRAY, raw_array(ARRAY, 1) * 5000)]), "nested more than 8 deep"),
    "nested arrays in all": (
        raw_file([raw_key("a", ARRAY, raw_array(ARRAY, 70000, raw_array(0, 0) * 70000))]),
        "claims 70000 arrays",
    ),
    "nested arrays together": (
        raw_file([raw_key(name, ARRAY, raw_array(ARRAY, 40000, raw_array(0, 0) * 40000)) for name in "ab"]),
        "'b': the file holds more than 65536 nested arrays",
    ),
    "alignment of 0": (raw_file([alignment(bytes(4))]), "power of two from 8 to 1048576, found 0"),
    "odd alignment": (raw_file([alignment(struct.pack("<I", 33))]), "found 33"),
    "alignment of 4": (raw_file([alignment(struct.pack("<I", 4))]), "found 4"),
    "alignment of 24": (raw_file([alignment(struct.pack("<I", 24))]), "found 24"),
    "alignment of 2 GiB": (raw_file([alignment(struct.pack("<I", 1 << 31))]), "found 2147483648"),
    "alignment of 64 bits": (raw_file([alignment(struct.pack("<Q", 32), 10)]), "type uint32, found uint64"),
    "alignment as text": (raw_file([alignment(raw_string("32"), STRING)]), "type uint32, found string"),
    "alignment as a list": (raw_file([alignment(raw_array(U32, 1, bytes(4)), ARRAY)]), "found array"),
}

TENSORS = {
    "tensor name": (raw_file(tensors=[struct.pack("<Q", HUGE) + bytes(64)]), f"claims {HUGE} bytes of its name"),
    "empty tensor name": (raw_file(tensors=[raw_tensor("", [4])], data=bytes(32)), "its name is empty"),
    "name not utf-8": (raw_file(tensors=[raw_tensor(b"\xc3", [4])], data=bytes(32)), "not valid UTF-8"),
    "no dimensions": (raw_file(tensors=[raw_tensor("w", [])], data=bytes(32)), "1 to 4 dimensions, found 0"),
    "five dimensions": (raw_file(tensors=[raw_tensor("w", [1] * 5)], data=bytes(32)), "found 5"),
    "2^32 - 1 dimensions": (
        raw_file(tensors=[raw_string("w") + b"\xff" * 4 + bytes(60)], data=bytes(32)),
        "found 4294967295",
    ),
    "an extent of 0": (raw_file(tensors=[raw_tensor("w", [4, 0])], data=bytes(32)), r"shape \(0, 4\) holds no weights"),
    "overflow": (raw_file(tensors=[raw_tensor("w", [1 << 32] * 4)], data=bytes(32)), "or more than a file can"),
    "overflow to 0": (raw_file(tensors=[raw_tensor("w", [1 << 32, 1 << 32])], data=bytes(32)), "more than a file"),
    "row": (raw_file(tensors=[raw_tensor("w", [33], 8)], data=bytes(99)), "rows of 33 weights .* q8_0 blocks of 32"),
    "misaligned": (raw_file(tensors=[raw_tensor("w", [4], 0, 4)], data=bytes(64)), "at a multiple of 32"),
    "offset": (raw_file(tensors=[raw_tensor("w", [4], 0, HUGE)], data=bytes(64)), "end past the file's"),
    "data past the end": (raw_file(tensors=[raw_tensor("w", [17])], data=bytes(64)), "its 68 bytes .* end past"),
    "no data": (raw_file(tensors=[raw_tensor("w", [1])]), "its 4 bytes .* end past"),
    "overlap": (
        raw_file(tensors=[raw_tensor("w", [32]), raw_tensor("v", [8], 0, 64)], data=bytes(128)),
        r"'v': its data at offset \d+ overlaps that of tensor 'w'",
    ),
    "same place": (
        raw_file(tensors=[raw_tensor("w", [8]), raw_tensor("v", [8])], data=bytes(128)),
        "overlaps that of tensor",
    ),
    "tensor twice": (
        raw_file(tensors=[raw_tensor("w", [8]), raw_tensor("w", [8], 0, 32)], data=bytes(64)),
        "'w': is there twice",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(tmp_path: Path, case: str) -> None:
    refuse(tmp_path / "m.gguf", *HEADERS[case])


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_lie(tmp_path: Path, case: str) -> None:
    refuse(tmp_path / "m.gguf", *TENSORS[case])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw_file(version=1), "found 1"),
        (raw_file(version=0), "found 0"),
        (raw_file(version=4), "found 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8), "big-endian"),
        (raw_file(tensors=[raw_tensor("w", [32], 4)], data=bytes(64)), "'w' has the ggml type number 4"),
        (raw_file(tensors=[raw_tensor("w", [32], 2**31)], data=bytes(64)), "number 2147483648"),
    ],
)
def test_versions_and_types_that_are_not_read(tmp_path: Path, content: bytes, message: str) -> None:
    refuse(tmp_path / "m.gguf", content, message, UnsupportedError)


def test_a_file_of_43_bytes_claims_more_than_it_holds(tmp_path: Path) -> None:
    content = raw_file([raw_key("abc", ARRAY, raw_array(ARRAY, HUGE))])
    refuse(tmp_path / "m.gguf", content[:43], "the file ends here: 51 bytes are needed, but it has 43")
    for item in (0, 7, STRING, ARRAY, 12):
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 0)[:3]
        refuse(tmp_path / "m.gguf", (head + raw_array(item, HUGE) + bytes(43))[:43], "m.gguf")


def test_names_in_messages_are_short_and_escaped(tmp_path: Path) -> None:
    name = "\x1b[31m" + "n" * 5000
    with pytest.raises(FileError) as caught:
        (tmp_path / "m.gguf").write_bytes(raw_file([raw_key(name, 99, b"")]))
        GgufSource(tmp_path / "m.gguf")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_header_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:  # 8 GiB, all but the first bytes a hole
        file.write(raw_file([raw_key("a", ARRAY, raw_array(0, 6 << 30))]))
        file.truncate(8 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match="claims 6442450944 numbers"):
            GgufSource(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def valid_file(path: Path) -> bytes:
    keys = {
        "general.architecture": string("llama"),
        "general.alignment": u32(32),
        "eps": f32(1e-5),
        "tokens": array(["<s>", "a", "bc", "é"]),
        "scores": array(np.float32([0, -1, -2, -3])),
        "flags": array([True, False]),
        "nested": array([array([1, 2]), array(["x"])]),
    }
    tensors = {
        "token_embd.weight": random_stored("q4_k", (4, 256), 1),
        "output_norm.weight": np.ones(16, np.float32),
        "blk.0.attn_q.weight": random_stored("q8_0", (2, 64), 2),
    }
    write_gguf(path, keys, tensors)
    return path.read_bytes()


def opens(path: Path, content: bytes) -> bool:
    """Open and read all; True where the damage was to harmless bytes, False where it was refused."""
    path.write_bytes(content)
    try:
        source = GgufSource(path)
    except (FileError, UnsupportedError):
        return False
    for name, info in source.tensors.items():
        assert source.packed(name).parts["data"].nbytes == info.nbytes
    assert len(source.metadata) == len(source.keys)
    return True


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content = valid_file(tmp_path / "whole.gguf")
    last = 2 * 68  # of the last tensor, before its padding
    end = len(content) - (-last % 32)
    survivors = [length for length in range(len(content)) if opens(tmp_path / "m.gguf", content[:length])]
    assert survivors == list(range(end, len(content)))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    content = valid_file(tmp_path / "whole.gguf")
    header = content.index(b"blk.0.attn_q.weight") + 60
    random_source = random.Random(seed)
    interesting = [0, 1, 0x7F, 0x80, 0xFF]
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(600):
            mutated = bytearray(content)
            for _ in range(random_source.choice([1, 1, 1, 2, 8])):
                at = random_source.randrange(header)
                width = random_source.choice([1, 1, 4, 8])
                mutated[at : at + width] = (
                    bytes([random_source.choice([*interesting, random_source.randrange(256)])]) * width
                )
            if random_source.random() < 0.1:
                del mutated[random_source.randrange(len(mutated)) :]
            if random_source.random() < 0.1:
                at = random_source.randrange(header)
                mutated[at:at] = random_source.randbytes(random_source.randrange(1, 16))
            refused += not opens(tmp_path / "m.gguf", bytes(mutated))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert 150 < refused < 600


def test_the_number_of_strings_is_bounded(tmp_path: Path) -> None:
    """Texts of two letters take ten times their size in memory."""
    path = tmp_path / "many.gguf"
    half = (1 << 20) + 1
    one = raw_array(8, half, raw_string("ab") * half)
    path.write_bytes(raw_file(keys=[raw_key("a", 9, one), raw_key("b", 9, one)]))
    with pytest.raises(FileError, match="the file holds more than 2097152 strings in arrays"):
        GgufSource(path)
    path.write_bytes(raw_file(keys=[raw_key("a", 9, raw_array(8, 1 << 22, raw_string("") * (1 << 22)))]))
    with pytest.raises(FileError, match=r"claims 4194304 strings.*\(limit 2097152\)"):
        GgufSource(path)
