"""A model with an adapter added to its weights, tensor by tensor, as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bitsmith.containers.base import Extent, Source
from bitsmith.errors import UnsupportedError
from bitsmith.models.adapter import CONFIG, WEIGHTS, Adapter, LowRank
from bitsmith.models.checkpoint import Checkpoint, is_original
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import PackedTensor, QuantTensor, TensorInfo


class MergedSource:
    """A source whose adapted tensors are W + scale * up down, in float32; the others are those of the source below it.

    layers: what is added, by the tensors' names in the files; see `Source` for the rest
    """

    def __init__(self, base: Source, layers: Mapping[str, LowRank], files: tuple[Path, ...]) -> None:
        self.base, self.layers, self._files = base, layers, files
        own = {name: self._summed(base.tensors[name]) for name in layers}
        self._tensors = MappingProxyType({name: own.get(name, info) for name, info in base.tensors.items()})

    @staticmethod
    def _summed(info: TensorInfo) -> TensorInfo:
        return TensorInfo(info.name, info.shape, "f32", 4 * info.parameters)

    @property
    def path(self) -> Path:
        """That of the source below."""
        return self.base.path

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the source below, and of the adapter."""
        return (*self.base.files, *self._files)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors of the source below, adapted ones in float32."""
        return self._tensors

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Those of the source below."""
        return self.base.metadata

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedTensor:
        """See `Source.packed`."""
        if name not in self.layers:
            return self.base.packed(name, start, stop)
        info = self._tensors[name]
        values = self.rows(name, start, stop)
        shape = info.shape if len(values) == info.rows else values.shape
        return PackedTensor("f32", shape, {"data": values.view(np.uint8)})

    def decode(self, packed: PackedTensor) -> np.ndarray:
        """See `Source.decode`."""
        if packed.layout == "f32":
            data = np.ascontiguousarray(packed.parts["data"])
            return data.view(np.float32).reshape(len(data), -1)
        return self.base.decode(packed)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Source.rows`."""
        values = self.base.rows(name, start, stop)
        low = self.layers.get(name)
        return values if low is None else np.ascontiguousarray(values + low.delta(start, start + len(values)))

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> QuantTensor | None:
        """See `Source.codes`."""
        return None if name in self.layers else self.base.codes(name, start, stop)

    def input_rounding(self, name: str) -> InputRounding | None:
        """See `Source.input_rounding`."""
        return self.base.input_rounding(name)

    def extent(self, name: str) -> Extent | None:
        """See `Source.extent`."""
        return None if name in self.layers else self.base.extent(name)


def merged(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The model with the adapter added. Raises UnsupportedError for a model that is quantized."""
    layers = {checkpoint.place(f"{name}.weight"): low for name, low in adapter.layers.items()}
    for name in layers:
        info = checkpoint.source.tensors.get(name)
        if info is None:
            raise UnsupportedError(
                f"{checkpoint.source.path} holds {name} only in pieces; merging knows whole tensors."
            )
        if not is_original(info.layout):
            raise UnsupportedError(
                f"{checkpoint.source.path} is quantized ({name} is {info.layout}). Merging there would round the sum "
                "of weights and adapter to these few bits a second time, which loses most of what the adapter "
                "learned; give the 16-bit original: the sum is quantized in one pass."
            )
    files = tuple(adapter.path / name for name in (CONFIG, WEIGHTS))
    name = adapter.path.resolve().name
    digest = hashlib.sha256(files[1].read_bytes()).hexdigest()
    return replace(
        checkpoint,
        name=f"{checkpoint.name}-{name}",
        source=MergedSource(checkpoint.source, layers, files),
        merged={"base": checkpoint.name, "adapter": name, "adapter_sha256": digest},
    )
