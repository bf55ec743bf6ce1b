"""Folders in compressed-tensors' layouts, which llm-compressor writes and vLLM reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.compressed_codecs import FloatCodec, IntegerCodec, PackedCodec, compressed_codec
from bitsmith.containers.compressed_floats import Mxfp4Codec, Nvfp4Codec
from bitsmith.containers.container import ModuleContainer, Modules, Scheme
from bitsmith.containers.gptq import BITS
from bitsmith.containers.hf_entries import entry_of, group_size, known_integer, matrix_shape, modules, precision_of
from bitsmith.containers.hf_input_rounding import inputs_of
from bitsmith.containers.name_patterns import first_matches
from bitsmith.containers.safetensors_header import HeaderEntry
from bitsmith.containers.static_input import INPUT_SCALE, StaticInput
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.byte_scaled import NVFP4_TENSOR
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.microscale import MXFP4
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import TensorInfo

_FORMATS = {
    "packed": "pack-quantized",
    "integer": "int-quantized",
    "float": "float-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
}
_SCALE_DTYPES = {"nvfp4": "torch.float8_e4m3fn", "mxfp4": "torch.uint8"}  # of 4-bit floats
AnyCodec = PackedCodec | IntegerCodec | FloatCodec | StaticInput | Nvfp4Codec | Mxfp4Codec
_BESIDE = (  # for rounded inputs and outputs
    *(INPUT_SCALE, "input_global_scale", "output_scale", "input_zero_point", "output_zero_point"),
)
_INTEGER = Scheme("integer", 8, 0, grouped=False, optional_zeros=False, inputs="int8")
_FLOAT = Scheme("float", 8, 0, grouped=False, optional_zeros=False, inputs="fp8")
SCHEMES = {
    "w4a16": Scheme("packed", 4),
    "w8a16": Scheme("packed", 8),
    "w8a8": _INTEGER,
    "fp8": _FLOAT,
    "fp8-tensor": replace(_FLOAT, scope="tensor"),
    "w8a8-static": replace(_INTEGER, static=True),
    "fp8-static": replace(_FLOAT, static=True),
    "fp8-tensor-static": replace(_FLOAT, scope="tensor", static=True),
    "nvfp4": Scheme("nvfp4", 4, NVFP4_TENSOR.block, grouped=False, optional_zeros=False),
    "mxfp4": Scheme("mxfp4", 4, MXFP4.block, grouped=False, optional_zeros=False),
}


def _stored(scheme: Scheme, precision: str, version: int) -> tuple[Format, AnyCodec]:
    if scheme.kind in _SCALE_DTYPES:
        small = Nvfp4Codec() if scheme.kind == "nvfp4" else Mxfp4Codec()
        return small.format, small
    if scheme.kind == "float":
        row = fp8(precision)
        wide = TensorWide(f"{row.name}-tensor", row) if scheme.scope == "tensor" else row
        return wide, _with_input(scheme, FloatCodec(wide), precision)
    format = Affine(scheme.bits, scheme.group or 0, scheme.asymmetric, precision)
    if scheme.kind == "integer":
        return format, _with_input(scheme, IntegerCodec(format), precision)
    return format, PackedCodec(format)


def _with_input(
    scheme: Scheme, codec: IntegerCodec | FloatCodec, precision: str
) -> IntegerCodec | FloatCodec | StaticInput:
    rounding = scheme.input_rounding
    return StaticInput(codec, rounding, precision) if scheme.static and rounding is not None else codec


def _configuration(modules: Modules) -> dict[str, Any]:
    """`quantization_config` as compressed-tensors 0.20 (`QuantizationConfig`) writes it."""
    targets: dict[Scheme, list[str]] = {modules.main: ["Linear"]}
    for module, scheme in modules.others.items():
        targets.setdefault(scheme, []).append(module)
    formats = [_FORMATS[scheme.kind] for scheme in targets]
    return {
        "config_groups": {
            f"group_{number}": _config_group(scheme, names) for number, (scheme, names) in enumerate(targets.items())
        },
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": None,
        "format": formats[0] if len(set(formats)) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": list(modules.kept),
    }


def _config_group(scheme: Scheme, modules: list[str]) -> dict[str, Any]:
    small = scheme.kind in _SCALE_DTYPES
    kind = "float" if scheme.kind == "float" or small else "int"
    by = "tensor_group" if scheme.kind == "nvfp4" else "group" if scheme.group else scheme.scope
    dtypes = dict.fromkeys(("scale_dtype", "zp_dtype"), _SCALE_DTYPES[scheme.kind]) if small else {}
    inputs = None
    if scheme.input_rounding is not None:
        inputs = {
            "num_bits": 8,
            "type": kind,
            "symmetric": True,
            "group_size": None,
            "strategy": scheme.input_rounding.scope,
            "dynamic": not scheme.static,
        }
    return {
        "targets": modules,
        "weights": {
            "num_bits": scheme.bits,
            "type": kind,
            "symmetric": not scheme.asymmetric,
            "group_size": scheme.group or None,
            "strategy": by,
            "dynamic": False,
            **dtypes,
        },
        "input_activations": inputs,
        "output_activations": None,
        "format": _FORMATS[scheme.kind],
    }


def _read(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise FileError(f"{folder}: quantization_config has no config_groups; download config.json again")
    quantized = [
        module
        for module in modules(entries, ".weight_scale")
        if f"{module}.weight_packed" in entries or f"{module}.weight" in entries
    ]
    for module, group in zip(quantized, _groups_naming(folder, groups, quantized), strict=True):
        packed = f"{module}.weight_packed" in entries
        if group is None:
            raise FileError(
                f"{folder}: no group of quantization_config targets {module}, whose weight is quantized; download "
                "config.json again"
            )
        args = _arguments(folder, group)
        if args.get("type") == "float" and args.get("strategy") == "block":
            continue  # `fp8_reader` reads blocks
        scale = entry_of(folder, entries, f"{module}.weight_scale")
        codec: AnyCodec
        small = _small_floats(folder, args, entries, module) if packed else None
        precision = "" if small else precision_of(folder, entries, f"{module}.weight_scale")
        if small is not None:
            shape, codec = small
        elif packed:
            shape, codec = _packed(folder, args, entries, module, precision)
        else:
            shape = matrix_shape(folder, entries, f"{module}.weight")
            codec = _unpacked(folder, args, shape, scale, precision)
        beside = [f"{module}.{name}" for name in _BESIDE]
        if isinstance(codec, IntegerCodec) and not codec.format.asymmetric:
            beside.append(f"{module}.weight_zero_point")
        inputs, static = inputs_of(folder, group, module)
        if static and isinstance(inputs, InputRounding) and isinstance(codec, PackedCodec | IntegerCodec | FloatCodec):
            codec = _with_input_scale(folder, entries, module, codec, inputs)
        info = TensorInfo(f"{module}.weight", shape, codec.name, 0)
        names = {part: f"{module}.{part}" for part in codec.layout(shape)}
        present = tuple(name for name in beside if name in entries and name not in names.values())
        found = fold(folder, codec, info, names, entries, said_by="quantization_config", beside=present)
        yield replace(found, inputs=inputs)


def _with_input_scale(
    folder: Path,
    entries: Entries,
    module: str,
    codec: PackedCodec | IntegerCodec | FloatCodec,
    input_rounding: InputRounding,
) -> StaticInput:
    name = f"{module}.{INPUT_SCALE}"
    shape = entry_of(folder, entries, name).shape
    if shape not in ((), (1,)):
        raise FileError(f"{folder}: entry {name} is {list(shape)}; a tensor has one scale, [1]: make the file again")
    return StaticInput(codec, input_rounding, precision_of(folder, entries, name), shape)


def _small_floats(
    folder: Path, args: Mapping[str, Any], entries: Entries, module: str
) -> tuple[tuple[int, int], Nvfp4Codec | Mxfp4Codec] | None:
    """The shape and the codec of a weight of 4-bit floats; None for other weights.

    Raises UnsupportedError for scales of another type, or zero points.
    """
    if args.get("type") != "float":
        return None
    codecs: dict[tuple[str, bool], Nvfp4Codec | Mxfp4Codec]
    codecs = {("F8_E4M3", True): Nvfp4Codec(), ("U8", False): Mxfp4Codec()}
    scale = entry_of(folder, entries, f"{module}.weight_scale").dtype
    codec = codecs.get((scale, f"{module}.weight_global_scale" in entries))
    if codec is None or args.get("num_bits") != 4 or args.get("symmetric", True) is not True:
        raise UnsupportedError(
            f"{folder}: {module} holds packed floats of {args.get('num_bits')} bits with scales in {scale}; known are "
            "nvfp4-pack-quantized and mxfp4-pack-quantized, symmetric"
        )
    rows, half = matrix_shape(folder, entries, f"{module}.weight_packed")
    return (rows, 2 * half), codec


def _packed(
    folder: Path, args: Mapping[str, Any], entries: Entries, module: str, precision: str
) -> tuple[tuple[int, int], PackedCodec]:
    bits = known_integer(folder, args, "num_bits", BITS)
    group = _strategy_group(folder, args, module)
    format = Affine(bits, group, args.get("symmetric", True) is False, precision)
    words = matrix_shape(folder, entries, f"{module}.weight_packed")
    groups = matrix_shape(folder, entries, f"{module}.weight_scale")[1]
    cols = groups * group if group else words[1] * 32 // bits
    return (words[0], cols), PackedCodec(format, f"{module}.weight_g_idx" in entries)


def _unpacked(
    folder: Path, args: Mapping[str, Any], shape: tuple[int, int], scale: HeaderEntry, precision: str
) -> IntegerCodec | FloatCodec:
    if args.get("type") == "float":
        if args.get("num_bits") != 8 or args.get("strategy") not in ("channel", "tensor"):
            raise UnsupportedError(
                f"{folder}: float weights of {args.get('num_bits')} bits by {args.get('strategy')} are unknown; "
                "known: 8 bits by channel or tensor"
            )
        row = fp8(precision)
        if args["strategy"] == "tensor" or scale.shape in ((), (1,)):
            return FloatCodec(TensorWide(f"{row.name}-tensor", row), scale.shape)
        return FloatCodec(row)
    bits = known_integer(folder, args, "num_bits", BITS)
    group = _strategy_group(folder, args, scale.name)
    return IntegerCodec(Affine(bits, group, args.get("symmetric", True) is False, precision))


def _groups_naming(
    folder: Path, groups: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> list[Mapping[str, Any] | None]:
    """For each module, the first group that targets it by name or "re:" pattern, else the first that targets a class.

    None if there is no such group.
    """
    listed = [group.get("targets") for group in groups.values()]
    flat = [
        (str(target), group)
        for group, targets in zip(groups.values(), listed, strict=True)
        for target in (targets if isinstance(targets, list) else ())
    ]
    numbered = [(number, target[3:]) for number, (target, _) in enumerate(flat) if target.startswith("re:")]
    by_class = next((group for target, group in flat if "." not in target), None)
    exact = {target: number for number, (target, _) in reversed(list(enumerate(flat)))}
    where = f"{folder}: `targets` of quantization_config"
    matched = first_matches([pattern for _, pattern in numbered], names, where=where)
    found = []
    for name, match in zip(names, matched, strict=True):
        numbers = [exact[name]] if name in exact else []
        numbers += [] if match is None else [numbered[match][0]]
        found.append(flat[min(numbers)][1] if numbers else by_class)
    return found


def _arguments(folder: Path, group: Mapping[str, Any]) -> Mapping[str, Any]:
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise FileError(f"{folder}: a group of quantization_config has no weights; download config.json again")
    return weights


def _strategy_group(folder: Path, args: Mapping[str, Any], name: str) -> int:
    """Number of weights in a group; 0 for a whole row."""
    if args.get("strategy") == "channel":
        return 0
    if args.get("strategy") in ("group", None) and args.get("group_size") is not None:
        return group_size(folder, args, "group_size")
    raise UnsupportedError(
        f"{folder}: {name}: integers by {str(args.get('strategy'))[:40]} are unknown; known: by group, by channel"
    )


def _codec(format: Format) -> PackedCodec | FloatCodec | Nvfp4Codec | Mxfp4Codec | None:
    """The codec of a format; None if these layouts cannot hold it."""
    if format == NVFP4_TENSOR:
        return Nvfp4Codec()
    return Mxfp4Codec() if format == MXFP4 else compressed_codec(format)


CONTAINER = ModuleContainer(
    name="compressed",
    codec=_codec,
    runtimes=frozenset({"vllm", "transformers"}),
    schemes=SCHEMES,
    stored=_stored,
    configuration=_configuration,
    quant_method="compressed-tensors",
    marks=(".weight_packed", ".weight_scale"),
    kept_list=lambda config: config["ignore"],
    read=_read,
)
