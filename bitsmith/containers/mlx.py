"""Folders in MLX's layout, which mlx-lm writes and loads (mlx.core.quantize; mlx_lm.utils).

A weight [out, in] of b-bit codes in groups along its rows becomes

- weight uint32 [out, in * b / 32]: the codes of each row as one string of bits, the first in the lowest bits
- scales [out, groups]: in the model's own type in mode "affine"; E8M0 bytes in "mxfp4" and "mxfp8", E4M3 in "nvfp4"
- biases [out, groups]: in mode "affine" only; value = scale * code + bias

config.json has `quantization` with group_size, bits, mode and the settings of modules that differ, by name; it stands
there once more as `quantization_config`. A module is quantized where the file holds its `scales`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.container import ModuleContainer, Modules, Scheme
from bitsmith.containers.hf_entries import entry_of, known_integer, matrix_shape, modules, precision_of
from bitsmith.containers.integers import pack_words, unpack_words, word_count
from bitsmith.containers.module_lists import spellings
from bitsmith.containers.nibbles import pack_e2m1, unpack_e2m1
from bitsmith.containers.patterns import from_patterns, to_patterns
from bitsmith.errors import FileError, TensorError, UnsupportedError
from bitsmith.quant.formats.affine_bias import AffineBias
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.byte_scaled import MXFP8, ByteScaled
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.microscale import MXFP4, NVFP4, MicroScaled
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.tensor import QuantTensor, TensorInfo

_WORD = np.dtype("<u4")
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (64, 32, 128)
_MODES: Mapping[str, MicroScaled | ByteScaled] = {"mxfp4": MXFP4, "nvfp4": NVFP4, "mxfp8": MXFP8}
_EXPERT = re.compile(r"(.+)\.experts\.\d+\.(\w+)$")
_STACKED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class AffineCodec:
    """Mode "affine"."""

    format: AffineBias

    @property
    def name(self) -> str:
        """The layout's name: "mlx/4bit-g64", plus "-f16" if scales are not bfloat16."""
        precision = "" if self.format.precision == "bf16" else f"-{self.format.precision}"
        return f"mlx/{self.format.bits}bit-g{self.format.group}{precision}"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        rows, cols = _matrix(shape)
        params = self.format.params_layout(rows, cols)
        return {
            "weight": ((rows, word_count(cols, self.format.bits)), _WORD),
            "scales": params["scale"],
            "biases": params["bias"],
        }

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows. Raises TensorError if scales or biases overflow float16."""
        params = {name: as_numpy(tensor.params[name]) for name in ("scale", "bias")}
        if self.format.precision == "f16":
            largest = max(float(np.abs(values.astype(np.float32)).max(initial=0)) for values in params.values())
            if largest >= float(np.finfo(np.float16).max):
                raise TensorError(
                    "the weights are so large that their scales overflow float16; quantize a bfloat16 model, or leave "
                    "the tensor in 16 bits with --keep"
                )
        words = pack_words(as_numpy(tensor.codes), self.format.bits).view(_WORD)
        return {"weight": words, "scales": _stored_as(params["scale"]), "biases": _stored_as(params["bias"])}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows."""
        codes = unpack_words(parts["weight"].view("<i4"), self.format.bits, cols)
        return QuantTensor(self.format, codes, {"scale": parts["scales"], "bias": parts["biases"]})


@dataclass(frozen=True)
class FloatCodec:
    """Modes "mxfp4", "nvfp4" and "mxfp8"."""

    format: MicroScaled | ByteScaled

    @property
    def name(self) -> str:
        """The layout's name: "mlx/mxfp4"."""
        return f"mlx/{self.format.name}"

    @property
    def _param(self) -> str:
        return self.format.param if isinstance(self.format, MicroScaled) else "scale"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        rows, cols = _matrix(shape)
        if cols % self.format.multiple:
            raise UnsupportedError(f"{self.name} needs rows that divide by {self.format.multiple}, not {cols} weights")
        return {
            "weight": ((rows, word_count(cols, self.format.bits)), _WORD),
            "scales": ((rows, cols // self.format.block), np.dtype(np.uint8)),
        }

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        codes = as_numpy(tensor.codes)
        packed = pack_e2m1(codes) if self.format.bits == 4 else to_patterns(codes, fp8())
        scales = np.ascontiguousarray(as_numpy(tensor.params[self._param]))
        return {"weight": np.ascontiguousarray(packed).view(_WORD), "scales": scales}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows. Raises TensorError for a pattern or a scale without a value."""
        packed = np.ascontiguousarray(parts["weight"]).view(np.uint8)
        scales = parts["scales"]
        top = self.format.top if isinstance(self.format, MicroScaled) else len(self.format.scales) - 1
        if scales.size and int(scales.max()) > top:
            raise TensorError(f"a scale is the byte {int(scales.max())}, which has no value; make the file again")
        codes = unpack_e2m1(packed) if self.format.bits == 4 else from_patterns(packed, fp8())
        return QuantTensor(self.format, codes, {self._param: np.ascontiguousarray(scales)})


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or not shape[0]:
        raise UnsupportedError(f"MLX's layout holds matrices, not {list(shape)}; leave the tensor in 16 bits")
    return shape[0], shape[1]


def _stored_as(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values)


def mlx_codec(format: Format) -> AffineCodec | FloatCodec | None:
    """The codec of a format; None if MLX has no such mode."""
    if isinstance(format, AffineBias) and format.bits in _BITS and format.group in _GROUPS:
        return AffineCodec(format)
    return FloatCodec(format) if isinstance(format, MicroScaled | ByteScaled) and format in _MODES.values() else None


def _stored(scheme: Scheme, precision: str, version: int) -> tuple[Format, AffineCodec | FloatCodec]:
    if scheme.kind in _MODES:
        float_codec = FloatCodec(_MODES[scheme.kind])
        return float_codec.format, float_codec
    codec = AffineCodec(AffineBias(scheme.bits, scheme.group or _GROUPS[0], precision))
    return codec.format, codec


def _settings(scheme: Scheme) -> dict[str, Any]:
    return {"group_size": scheme.group, "bits": scheme.bits, "mode": scheme.kind}


def _configuration(modules: Modules) -> dict[str, Any]:
    """`quantization` as mlx_lm.convert writes it."""
    others = {each: _settings(scheme) for name, scheme in modules.others.items() for each in (name, *_stacks(name))}
    return {**_settings(modules.main), **others}


def _stacks(module: str) -> tuple[str, ...]:
    """mlx-lm's name of the stack that it makes of an expert's matrix and the others'; none for other modules."""
    found = _EXPERT.match(module)
    return () if found is None else (f"{found[1]}.switch_mlp.{_STACKED.get(found[2], found[2])}",)


def _read(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    for module in modules(entries, ".scales"):
        if f"{module}.weight" not in entries or entry_of(folder, entries, f"{module}.weight").dtype != "U32":
            continue
        if f"{module}.global_scale" in entries:
            raise UnsupportedError(f"{folder}: {module} has a global_scale, which is not known; {_AGAIN}")
        codec = _codec(folder, config, entries, module)
        rows, words = matrix_shape(folder, entries, f"{module}.weight")
        info = TensorInfo(f"{module}.weight", (rows, words * 32 // codec.format.bits), codec.name, 0)
        names = {part: f"{module}.{part}" for part in codec.layout(info.shape)}
        yield fold(folder, codec, info, names, entries, said_by="quantization")


_AGAIN = "quantize the original model again"


def _codec(folder: Path, config: Mapping[str, Any], entries: Entries, module: str) -> AffineCodec | FloatCodec:
    """The codec of a module, by its own settings or those of the model."""
    own: Mapping[str, Any] = next(
        (config[name] for name in spellings(module) if isinstance(config.get(name), dict)), {}
    )
    values = {**config, **own}
    mode = values.get("mode", "affine")
    if mode in _MODES:
        format = _MODES[mode]
        if (values.get("bits", format.bits), values.get("group_size", format.block)) != (format.bits, format.block):
            raise FileError(f"{folder}: {module} is {mode} with other bits or groups than that has; {_AGAIN}")
        return FloatCodec(format)
    if mode != "affine":
        raise UnsupportedError(
            f"{folder}: MLX's mode {str(mode)[:40]!r} is unknown; known: affine, {', '.join(_MODES)}"
        )
    bits = known_integer(folder, values, "bits", _BITS)
    group = known_integer(folder, values, "group_size", (16, *_GROUPS))
    return AffineCodec(AffineBias(bits, group, precision_of(folder, entries, f"{module}.scales")))


CONTAINER = ModuleContainer(
    name="mlx",
    codec=mlx_codec,
    runtimes=frozenset({"mlx"}),
    schemes={
        **{
            f"{bits}bit": Scheme("affine", bits, optional_zeros=False, groups=_GROUPS, known_groups=_GROUPS)
            for bits in _BITS
        },
        **{
            mode: Scheme(mode, format.bits, format.block, grouped=False, optional_zeros=False)
            for mode, format in _MODES.items()
        },
    },
    stored=_stored,
    configuration=_configuration,
    config_keys=("quantization", "quantization_config"),
    quant_method="mlx",
    fuses=False,
    marks=(".scales",),
    read=_read,
)
