"""The interfaces of every container: a source of tensors, and the codec of one tensor's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from bitsmith.quant.tensor import PackedTensor, QuantTensor, TensorInfo

if TYPE_CHECKING:
    from bitsmith.quant.formats.base import Format
    from bitsmith.quant.input_rounding import InputRounding


class Extent(NamedTuple):
    """Position of a tensor's bytes in a file: one piece, rows in order."""

    path: Path
    offset: int


class Source(Protocol):
    """An opened checkpoint file or folder. Opening validates every header and offset; data is read on demand.

    tensors: by the file's own names, in file order
    metadata: GGUF key-values, or the safetensors `__metadata__`
    files: the files that hold the tensors
    """

    @property
    def path(self) -> Path: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedTensor:
        """Rows start..stop of a tensor's stored bytes, copied into fresh buffers (no mapped pages are kept)."""
        ...

    def decode(self, packed: PackedTensor) -> np.ndarray:
        """Decode the result of `packed`: float32 [rows, cols]."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop decoded: float32 [stop - start, cols]. A vector is one row."""
        ...

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> QuantTensor | None:
        """Rows start..stop as codes and parameters; None for floats, and for types that can only be decoded.

        An empty range of rows is allowed; its result names the format.
        """
        ...

    def input_rounding(self, name: str) -> InputRounding | None:
        """How the input of a matrix is rounded; None: not at all.

        Raises UnsupportedError if the file asks for an unknown rounding, TensorError for an invalid scale.
        """
        ...

    def extent(self, name: str) -> Extent | None:
        """Position of a tensor's stored bytes; None if they are spread over several entries."""
        ...


class Codec(Protocol):
    """One tensor layout of one container: codes and parameters <-> bytes. Only codecs know a layout's quirks."""

    @property
    def format(self) -> Format: ...

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part. Raises UnsupportedError if the shape is impossible."""
        ...

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        ...

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows."""
        ...


class ModuleCodec(Codec, Protocol):
    """A codec with a name for its layout: "gptq/int4-g128"."""

    @property
    def name(self) -> str: ...


class RowAxis(NamedTuple):
    """How a tensor's rows lie in a part: along `axis`, with `rows` rows in `entries` entries."""

    axis: int
    rows: int = 1
    entries: int = 1

    def entry(self, row: int) -> int:
        """Number of entries that the rows before `row` take."""
        return -(-row * self.entries // self.rows)


@runtime_checkable
class WholeTensorCodec(Protocol):
    """A codec whose parts do not keep the order of the tensor's rows. Such a tensor is written whole.

    Slabs are encoded one by one and then joined. `encode` and `decode` take slabs that begin at a multiple of
    `row_multiple`; `window` cuts any other rows out of such a slab.
    """

    @property
    def row_multiple(self) -> int: ...
    @property
    def axes(self) -> Mapping[str, RowAxis | None]:
        """The axis of each part; None if the part is the same in every slab."""
        ...

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Join the parts of a tensor's slabs, which come in order."""
        ...

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """Parts of the rows start..stop of a slab."""
        ...


def join_slabs(codec: WholeTensorCodec, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join along each part's axis; parts without one come from the first slab."""
    joined = {}
    for part, axis in codec.axes.items():
        arrays = [slab[part] for slab in slabs]
        joined[part] = arrays[0] if axis is None or len(arrays) == 1 else np.concatenate(arrays, axis=axis.axis)
    return joined


def cut(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    """Entries start..stop along an axis, copied."""
    return np.ascontiguousarray(array[start:stop] if axis == 0 else array[:, start:stop])
