"""GGUF files for tests: laid out by the package's writer and put on disk, or built byte by byte, lies included."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsmith.containers.gguf.metadata_values import Value
from bitsmith.containers.gguf.types import TYPES
from bitsmith.containers.gguf.writer import gguf_layout
from bitsmith.quant.tensor import TensorInfo


@dataclass(frozen=True)
class Stored:
    """A tensor of any ggml type as bytes, uint8 [rows, bytes per row]."""

    layout: str
    shape: tuple[int, ...]
    data: np.ndarray


def random_stored(layout: str, shape: tuple[int, ...], seed: int = 0) -> Stored:
    """Random bytes of the right length."""
    rows = int(np.prod(shape[:-1]))
    row_bytes = TYPES[layout].row_bytes(shape[-1])
    return Stored(layout, shape, np.random.default_rng(seed).integers(0, 256, (rows, row_bytes), np.uint8))


def stored(tensor: np.ndarray | Stored) -> Stored:
    """A numpy array of float32, float16 or integers as the ggml type of its dtype."""
    if isinstance(tensor, Stored):
        return tensor
    names = {"float32": "f32", "float16": "f16", "float64": "f64", "bfloat16": "bf16"}
    names |= {f"int{bits}": f"i{bits}" for bits in (8, 16, 32, 64)}
    return Stored(names[tensor.dtype.name], tensor.shape, np.frombuffer(tensor.tobytes(), np.uint8))


def write_gguf(
    path: Path,
    keys: Mapping[str, Value],
    tensors: Mapping[str, np.ndarray | Stored],
    *,
    max_shard_bytes: int | None = None,
) -> list[Path]:
    """Write one file, or a split set beside `path`; the paths written."""
    contents = {name: stored(tensor) for name, tensor in tensors.items()}
    infos = [TensorInfo(name, c.shape, c.layout, c.data.nbytes) for name, c in contents.items()]
    written = []
    for layout in gguf_layout(path.name, keys, infos, max_shard_bytes=max_shard_bytes):
        content = bytearray(layout.size)
        content[: len(layout.header)] = layout.header
        for region in layout.regions:
            assert region.part == "data"
            content[region.offset : region.offset + region.nbytes] = contents[region.tensor].data.tobytes()
        assert len(content) == layout.size
        written.append(path.with_name(layout.filename))
        written[-1].write_bytes(content)
    return written


def raw_string(text: str | bytes) -> bytes:
    """A length-prefixed string."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def raw_key(name: str | bytes, number: int, payload: bytes) -> bytes:
    """A key of value type `number`."""
    return raw_string(name) + struct.pack("<I", number) + payload


def raw_array(item: int, length: int, payload: bytes = b"") -> bytes:
    """The payload of an array value."""
    return struct.pack("<IQ", item, length) + payload


def raw_tensor(name: str | bytes, extents: Sequence[int], number: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry; extents in the file's order."""
    return raw_string(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, number, offset)


def raw_file(
    keys: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file of these entries; counts: tensors and keys as the header claims them."""
    keys, tensors = list(keys), list(tensors)
    claimed = counts if counts is not None else (len(tensors), len(keys))
    header = b"GGUF" + struct.pack("<IQQ", version, *claimed) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data
