"""One tensor in AutoAWQ's GEMM layout (AutoAWQ, `WQLinear_GEMM`; Lin et al. 2023).

A weight [out, in] of 4-bit codes in groups along its rows becomes:

- qweight int32 [in, out / 8]: eight outputs per word; nibble i, from the lowest, holds output 0 2 4 6 1 3 5 7 [i]
- qzeros int32 [groups, out / 8]: zero points, packed in the same way
- scales float16 [groups, out]

value = scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.base import RowAxis, cut, join_slabs
from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.container import ModuleContainer, Modules, Scheme
from bitsmith.containers.hf_entries import group_size, known_integer, matrix_shape, modules, precision_of
from bitsmith.containers.integers import WORD, checked_scale, layout_name, pack_words, unpack_words
from bitsmith.containers.module_lists import any_part
from bitsmith.errors import UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.tensor import QuantTensor, TensorInfo

_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_BACK = np.argsort(_ORDER)


@dataclass(frozen=True)
class AwqCodec:
    """Codes and parameters of asymmetric 4-bit integers <-> AWQ's parts."""

    format: Affine

    @property
    def name(self) -> str:
        """The layout's name: "awq/int4-g128", without "asym" because AWQ is always asymmetric."""
        symmetric = Affine(self.format.bits, self.format.group, False, self.format.precision)
        return layout_name("awq", symmetric, "f16")

    @property
    def row_multiple(self) -> int:
        """Number of outputs in a word."""
        return 8

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Outputs lie along the second axis of every part."""
        return {"qweight": RowAxis(1, 8, 1), "qzeros": RowAxis(1, 8, 1), "scales": RowAxis(1)}

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        if len(shape) != 2 or shape[0] % 8 or not shape[0]:
            raise UnsupportedError(
                f"AWQ's layout holds matrices whose rows divide by 8, not {list(shape)}; leave the tensor in f16"
            )
        rows, cols = shape
        (_, groups), scale_dtype = self.format.params_layout(rows, cols)["scale"]
        return {
            "qweight": ((cols, rows // 8), WORD),
            "qzeros": ((groups, rows // 8), WORD),
            "scales": ((groups, rows), scale_dtype),
        }

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows; outputs are padded to whole words."""
        return {
            "qweight": _pack(as_numpy(tensor.codes).T),
            "qzeros": _pack(as_numpy(tensor.params["zero"]).T),
            "scales": checked_scale(as_numpy(tensor.params["scale"]).T, self.format.scale_dtype),
        }

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows."""
        scale = np.ascontiguousarray(parts["scales"].T)
        zero = np.ascontiguousarray(_unpack(parts["qzeros"], len(scale)).T)
        codes = np.ascontiguousarray(_unpack(parts["qweight"], len(scale)).T)
        return QuantTensor(self.format, codes, {"scale": scale, "zero": zero})

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return join_slabs(self, slabs)

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        rows = parts["scales"].shape[1]
        packed = {name: _pack(_unpack(parts[name], rows)[:, start:stop]) for name in ("qweight", "qzeros")}
        return {**packed, "scales": cut(parts["scales"], 1, start, stop)}


def awq_codec(format: Format) -> AwqCodec | None:
    """The codec of asymmetric 4-bit integers with float16 scales; None for other formats."""
    held = isinstance(format, Affine) and (format.bits, format.asymmetric, format.precision) == (4, True, "f16")
    return AwqCodec(format) if held and isinstance(format, Affine) else None


def _pack(codes: np.ndarray) -> np.ndarray:
    """uint8 [n, outputs] -> int32 [n, outputs / 8], rounded up."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    eights = padded.reshape(len(padded), padded.shape[1] // 8, 8)[:, :, _ORDER]
    return pack_words(np.ascontiguousarray(eights).reshape(padded.shape), 4)


def _unpack(words: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `_pack`: int32 [n, words] -> uint8 [n, count]."""
    n, width = words.shape
    eights = unpack_words(words, 4, 8 * width).reshape(n, width, 8)[:, :, _BACK]
    return eights.reshape(n, 8 * width)[:, :count]


def _stored(scheme: Scheme, precision: str, version: int) -> tuple[Format, AwqCodec]:
    format = Affine(scheme.bits, scheme.group or 0, scheme.asymmetric, precision)
    return format, AwqCodec(format)


def _configuration(modules: Modules) -> dict[str, Any]:
    """`quantization_config` as AutoAWQ and transformers write it."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": modules.main.bits,
        "group_size": modules.main.group or -1,
        "zero_point": True,
        "modules_to_not_convert": list(modules.kept),
    }


def _further_files(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    old = {"zero_point": True, "q_group_size": config["group_size"], "w_bit": config["bits"], "version": "GEMM"}
    return {"quant_config.json": {**old, "modules_to_not_convert": config["modules_to_not_convert"]}}


def _read(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise UnsupportedError(
            f"{folder}: AWQ's version {version[:40]!r} is unknown; known: gemm. Quantize again with version gemm"
        )
    values = {"bits": config.get("w_bit"), "group_size": config.get("q_group_size")}
    values = {key: value for key, value in {**values, **config}.items() if value is not None}
    known_integer(folder, values, "bits", (4,))
    group = group_size(folder, values, "group_size")
    for module in modules(entries, ".qweight"):
        codec = AwqCodec(Affine(4, group, True, precision_of(folder, entries, f"{module}.scales")))
        packed = matrix_shape(folder, entries, f"{module}.qweight")
        info = TensorInfo(f"{module}.weight", (8 * packed[1], packed[0]), codec.name, 0)
        names = {part: f"{module}.{part}" for part in codec.axes}
        yield fold(folder, codec, info, names, entries, said_by="quantization_config")


CONTAINER = ModuleContainer(
    name="awq",
    codec=awq_codec,
    runtimes=frozenset({"vllm", "transformers"}),
    schemes={"int4": Scheme("awq", 4, asymmetric=True, optional_zeros=False)},
    stored=_stored,
    precision="f16",
    mixed=False,
    configuration=_configuration,
    further_files=_further_files,
    quant_method="awq",
    marks=(".qweight",),
    old_config="quant_config.json",
    kept_list=lambda config: config["modules_to_not_convert"],
    skipped_by=any_part,
    read=_read,
)
