"""A toy container: int8 rows with a float32 scale each, in a folder whose quant_method is "toy"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.container import ModuleContainer, Modules, Scheme
from bitsmith.containers.hf_entries import matrix_shape, modules
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.tensor import QuantTensor, TensorInfo

INT8 = Affine(8, 0)


@dataclass(frozen=True)
class ToyCodec:
    """A weight [rows, cols] becomes toy_codes uint8 [rows, cols] and toy_scale float32 [rows, 1]."""

    format: Affine = INT8
    name: str = "toy/int8"

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part."""
        rows, cols = shape
        return {"toy_codes": ((rows, cols), np.dtype(np.uint8)), "toy_scale": ((rows, 1), np.dtype(np.float32))}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        return {"toy_codes": np.asarray(tensor.codes), "toy_scale": np.asarray(tensor.params["scale"])}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows."""
        return QuantTensor(self.format, parts["toy_codes"], {"scale": parts["toy_scale"]})


def _stored(scheme: Scheme, precision: str, version: int) -> tuple[Format, ToyCodec]:
    codec = ToyCodec()
    return codec.format, codec


def _configuration(named: Modules) -> dict[str, Any]:
    return {"quant_method": "toy", "ignore": list(named.kept)}


def _read(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    for module in modules(entries, ".toy_codes"):
        shape = matrix_shape(folder, entries, f"{module}.toy_codes")
        names = {part: f"{module}.{part}" for part in ("toy_codes", "toy_scale")}
        info = TensorInfo(f"{module}.weight", shape, "toy/int8", 0)
        yield fold(folder, ToyCodec(), info, names, entries, said_by="quantization_config")


CONTAINER = ModuleContainer(
    name="toy",
    codec=lambda format: ToyCodec() if format == INT8 else None,
    schemes={"int8": Scheme("toy", 8, 0, grouped=False, optional_zeros=False)},
    stored=_stored,
    configuration=_configuration,
    quant_method="toy",
    marks=(".toy_codes",),
    read=_read,
)
