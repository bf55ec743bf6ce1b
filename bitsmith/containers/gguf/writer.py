"""The layout of GGUF v3 files: the header's bytes, and the position of each tensor's data, for one file or a split set.

Source: the GGUF specification. The end of the file, the order and the split keys follow llama.cpp's gguf.cpp and
llama-gguf-split: the data of every tensor is padded to the alignment, also of the last one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from bitsmith.containers.gguf.header import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_DIMENSIONS
from bitsmith.containers.gguf.metadata_values import DTYPES, GgufArray, Value, ValueType, i32, scalar, u16, u32
from bitsmith.containers.gguf.split import SPLIT_COUNT, SPLIT_NO, SPLIT_PREFIX, SPLIT_TENSORS, split_name, split_prefix
from bitsmith.containers.gguf.types import TYPES
from bitsmith.containers.layout import FileLayout, Region
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.quant.tensor import TensorInfo

VERSION = 3
MAX_TENSOR_NAME = 63  # bytes: llama.cpp's GGML_MAX_NAME without the final zero
MAX_SPLITS = 0xFFFF  # split.count is 16 bits wide
_VOCABULARY = 2000  # items of an array that is kept as bytes: the tokens of a vocabulary, or its merges
_MORE = "Give a larger --max-shard-size."


def header_bytes(keys: Mapping[str, Value], tensors: Sequence[TensorInfo], alignment: int | None = None) -> bytes:
    """Everything before the data of `tensors`, final padding included.

    keys: written in their order; `split.*` keys are written as given
    tensors: in the order of their data; `layout` is the name of the ggml type
    alignment: alignment of data in bytes; default: the key `general.alignment`, or 32. Another value is written as
        that key, before all others, if `keys` lacks it.
    Raises UsageError for a name over 63 bytes, a name given twice, and an alignment that is not a power of two or
    contradicts the key; UnsupportedError for a type or shape that GGUF cannot hold.
    """
    keys, alignment = _aligned(keys, alignment)
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(keys))]
    head += [key_bytes(name, value) for name, value in keys.items()]
    head += _tensor_table(tensors, alignment)
    header = b"".join(head)
    return header + bytes(_padded(len(header), alignment) - len(header))


def gguf_layout(
    filename: str,
    keys: Mapping[str, Value],
    tensors: Sequence[TensorInfo],
    *,
    max_shard_bytes: int | None = None,
    shard_keys: Mapping[str, Value] | None = None,
) -> list[FileLayout]:
    """Layouts of the file, or of the files of a split set: the header, and one region (part "data") for each tensor.

    filename: "NAME.gguf"; a split set is named NAME-00001-of-0000N.gguf and so on
    keys: as for `header_bytes`; old `split.*` keys are left out
    max_shard_bytes: maximum size of each file, its header included; None: one file. If all tensors fit into one file,
        there is one file. Metadata goes into the first file, which may hold no tensor.
    shard_keys: further keys of each file, if there are several
    Raises UsageError if a tensor or the metadata alone exceeds the maximum; otherwise as `header_bytes` does.
    """
    keys = {name: value for name, value in keys.items() if not name.startswith(SPLIT_PREFIX)}
    keys, alignment = _aligned(keys, None)
    whole = _file(filename, keys, tensors, alignment)
    if max_shard_bytes is None or whole.size <= max_shard_bytes:
        return [whole]
    others = {ALIGNMENT_KEY: keys[ALIGNMENT_KEY]} if ALIGNMENT_KEY in keys else {}
    further = shard_keys or {}
    marks = {**_split_keys(0, 0, len(tensors)), **further}
    base = [len(header_bytes({**group, **marks}, [], alignment)) for group in (keys, others)]
    shards = _shards(tensors, base, alignment, max_shard_bytes)
    prefix = split_prefix(filename)
    return [
        _file(
            split_name(prefix, number + 1, len(shards)),
            {**(others if number else keys), **_split_keys(number, len(shards), len(tensors)), **further},
            shard,
            alignment,
        )
        for number, shard in enumerate(shards)
    ]


def _file(filename: str, keys: Mapping[str, Value], tensors: Sequence[TensorInfo], alignment: int) -> FileLayout:
    header = header_bytes(keys, tensors, alignment)
    regions, at = [], len(header)
    for tensor in tensors:
        regions.append(Region(tensor.name, "data", at, tensor.nbytes))
        at += _padded(tensor.nbytes, alignment)
    return FileLayout(filename, header, tuple(regions), at)


def _shards(tensors: Sequence[TensorInfo], base: list[int], alignment: int, limit: int) -> list[list[TensorInfo]]:
    """The tensors of each file. In order, each file takes as many as fit.

    base: size of the first file's header without tensors, and of the other files' headers, in bytes
    """
    shards: list[list[TensorInfo]] = [[]]
    if base[0] > limit:
        raise UsageError(f"the metadata alone takes {base[0]} bytes; files of {limit} bytes are too small. {_MORE}")
    header, data = base[0], 0
    for tensor in tensors:
        # header lengths are padded; adding unpadded table entries overestimates by less than one alignment
        entry, size = len(_tensor_bytes(tensor, 0)), _padded(tensor.nbytes, alignment)
        if _padded(header + entry, alignment) + data + size > limit:
            shards.append([])
            header, data = base[1], 0
        header, data = header + entry, data + size
        if _padded(header, alignment) + data > limit:
            raise UsageError(
                f"tensor {tensor.name!r} takes {_padded(header, alignment) + data} bytes with its header; files of "
                f"{limit} bytes are too small. {_MORE}"
            )
        shards[-1].append(tensor)
    if len(shards) > MAX_SPLITS:
        raise UsageError(f"files of {limit} bytes make a set of {len(shards)}, more than {MAX_SPLITS}. {_MORE}")
    return shards


def _split_keys(number: int, count: int, tensors: int) -> dict[str, Value]:
    return {SPLIT_NO: u16(number), SPLIT_COUNT: u16(count), SPLIT_TENSORS: i32(tensors)}


def _aligned(keys: Mapping[str, Value], alignment: int | None) -> tuple[Mapping[str, Value], int]:
    """Keys that give the alignment, and the alignment."""
    given = keys.get(ALIGNMENT_KEY)
    if given is not None and (given.type is not ValueType.UINT32 or alignment not in (None, given.value)):
        raise UsageError(f"{ALIGNMENT_KEY} must be uint32 {alignment or ''}; found {given.type.name} {given.value}")
    if given is not None and isinstance(given.value, int):
        alignment = given.value
    alignment = DEFAULT_ALIGNMENT if alignment is None else alignment
    if alignment < 8 or alignment > MAX_ALIGNMENT or alignment & (alignment - 1):
        raise UsageError(f"the alignment must be a power of two from 8 to {MAX_ALIGNMENT}, not {alignment}")
    if given is None and alignment != DEFAULT_ALIGNMENT:
        keys = {ALIGNMENT_KEY: u32(alignment), **keys}
    return keys, alignment


def _padded(length: int, alignment: int) -> int:
    return -(-length // alignment) * alignment


def _tensor_table(tensors: Sequence[TensorInfo], alignment: int) -> Iterable[bytes]:
    _check_names(tensors)
    at = 0
    for tensor in tensors:
        yield _tensor_bytes(tensor, at)
        at += _padded(tensor.nbytes, alignment)


def _check_names(tensors: Sequence[TensorInfo]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        length = len(tensor.name.encode())
        if not 0 < length <= MAX_TENSOR_NAME:
            raise UsageError(
                f"tensor name {tensor.name!r} has {length} bytes; llama.cpp reads 1 to {MAX_TENSOR_NAME}. Rename it"
            )
        if tensor.name in seen:
            raise UsageError(f"tensor {tensor.name!r} is there twice; a GGUF file holds each name once")
        seen.add(tensor.name)


def _tensor_bytes(tensor: TensorInfo, offset: int) -> bytes:
    kind = TYPES.get(tensor.layout)
    if kind is None:
        raise UnsupportedError(f"tensor {tensor.name!r}: GGUF cannot hold the layout {tensor.layout!r}")
    shape = tensor.shape or (1,)
    if len(shape) > MAX_DIMENSIONS or min(shape) < 1:
        raise UnsupportedError(
            f"tensor {tensor.name!r} has the shape {shape}; GGUF holds 1 to {MAX_DIMENSIONS} dimensions, none empty"
        )
    if kind.row_bytes(tensor.cols) * tensor.rows != tensor.nbytes:
        raise UsageError(
            f"tensor {tensor.name!r}: {tensor.nbytes} bytes were announced, but {kind.name} of shape {shape} takes "
            f"{kind.row_bytes(tensor.cols) * tensor.rows}"
        )
    extents = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return _string_bytes(tensor.name) + extents + struct.pack("<IQ", kind.number, offset)


def _string_bytes(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return len(raw).to_bytes(8, "little") + raw


def key_bytes(name: str, value: Value) -> bytes:
    """A key and its value as the file stores them. Raises UsageError for a value of another type than it says."""
    head = _string_bytes(name) + struct.pack("<I", value.type)
    content = value.value
    if isinstance(content, GgufArray):
        expected, body = ValueType.ARRAY, _array_bytes(content)
    elif isinstance(content, str):
        expected, body = ValueType.STRING, _string_bytes(content)
    elif isinstance(content, bool):
        expected, body = ValueType.BOOL, bytes([content])
    else:
        expected, body = value.type, np.array(scalar(value.type, content).value, DTYPES.get(value.type)).tobytes()
    if not name or expected is not value.type:
        raise UsageError(f"key {name!r} cannot hold a {type(content).__name__} as {value.type.name.lower()}")
    return head + body


def _array_bytes(value: GgufArray) -> bytes:
    head, items = struct.pack("<IQ", value.item, len(value)), value.items
    if isinstance(items, np.ndarray):
        return head + np.ascontiguousarray(items, DTYPES[value.item]).tobytes()
    return head + (_items_bytes(items) if len(items) < _VOCABULARY else _vocabulary_bytes(items))


def _items_bytes(items: tuple[str, ...] | tuple[GgufArray, ...]) -> bytes:
    return b"".join([_array_bytes(item) if isinstance(item, GgufArray) else _string_bytes(item) for item in items])


@lru_cache(maxsize=4)  # asked for whenever a plan tells its size
def _vocabulary_bytes(items: tuple[str, ...] | tuple[GgufArray, ...]) -> bytes:
    return _items_bytes(items)
