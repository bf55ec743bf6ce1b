"""The seams of every container: where tensors are read from, how one tensor's bytes are laid out."""

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
    """A tensor's bytes in one piece, rows in order."""

    path: Path
    offset: int


class Source(Protocol):
    """An opened checkpoint file or folder. Opening validates every header and offset; data is read on demand.

    tensors: by the name the file gives them, in file order
    metadata: GGUF key-values, or the safetensors `__metadata__`
    files: the files the tensors lie in
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
        """What `packed` gave, as float32 [rows, cols]."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop decoded: float32 [stop - start, cols]. A vector is one row."""
        ...

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> QuantTensor | None:
        """Rows start..stop as codes and parameters; None where there are none: floats, and types that only decode.

        No rows at all tell the format.
        """
        ...

    def input_rounding(self, name: str) -> InputRounding | None:
        """How a matrix wants its input rounded; None: not at all.

        Raises UnsupportedError where the file asks for what is not known, TensorError for a scale without sense.
        """
        ...

    def extent(self, name: str) -> Extent | None:
        """Where a tensor's stored bytes lie in one piece; None where they are spread over several entries."""
        ...


class Codec(Protocol):
    """One tensor layout of one container: codes and parameters <-> bytes. Quirks of a layout live here only."""

    @property
    def format(self) -> Format: ...

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part. Raises UnsupportedError where the shape is impossible."""
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
    """Where a tensor's rows lie in a part: along `axis`, every `rows` of them in `entries` entries."""

    axis: int
    rows: int = 1
    entries: int = 1

    def entry(self, row: int) -> int:
        """The entries that the rows before `row` take."""
        return -(-row * self.entries // self.rows)


@runtime_checkable
class WholeTensorCodec(Protocol):
    """A codec whose parts do not follow the order of the tensor's rows, so that a tensor is written whole.

    Slabs are encoded as ever, and joined. `encode` and `decode` take slabs that begin at a multiple of
    `row_multiple`; `window` cuts others out of one that does.
    """

    @property
    def row_multiple(self) -> int: ...
    @property
    def axes(self) -> Mapping[str, RowAxis | None]:
        """By part; None: the same in every slab."""
        ...

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The parts of a tensor from those of its slabs, in order."""
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
