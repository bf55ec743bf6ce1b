"""Folders that other tools quantized: which entries make up one weight, by config.json's `quantization_config`.

GPTQ (AutoGPTQ, GPTQModel, optimum), AWQ (AutoAWQ) and compressed-tensors (llm-compressor). Other methods' entries
stay as they are in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitsmith.containers import gptq
from bitsmith.containers.awq import AwqCodec
from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.compressed import FloatCodec, IntegerCodec, PackedCodec
from bitsmith.containers.gptq import GptqCodec
from bitsmith.containers.hf_input_rounding import inputs_of
from bitsmith.containers.safetensors_header import HeaderEntry
from bitsmith.containers.static_input import INPUT_SCALE, StaticInput
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import TensorInfo

_MARKS = (".qweight", ".weight_packed", ".weight_scale")
_OLD_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_CONFIG_BYTES = 16 << 20
_PRECISIONS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_BESIDE = (INPUT_SCALE, "output_scale", "input_zero_point", "output_zero_point")  # of compressed activations


def fold_quantized(folder: Path, entries: Entries) -> list[CompositeTensor]:
    """The quantized weights of the checkpoint in `folder`; none where nothing is quantized by a known method.

    Raises FileError where entries contradict the configuration, UnsupportedError for a variant that is not known.
    """
    if not any(name.endswith(_MARKS) for name in entries):
        return []
    config = _quantization_config(folder)
    if config is None:
        return []
    readers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}
    reader = readers.get(str(config.get("quant_method")).lower())
    return [] if reader is None else list(reader(folder, config, entries))


def _quantization_config(folder: Path) -> Mapping[str, Any] | None:
    """`quantization_config`, or the older tools' file of its own; None where config.json is missing."""
    whole = _read_json(folder / "config.json")
    if whole is None:
        return None
    for key in ("quantization_config", "compression_config"):
        if isinstance(whole.get(key), dict):
            found: Mapping[str, Any] = whole[key]
            return found
    for name, method in _OLD_CONFIGS.items():
        old = _read_json(folder / name)
        if old is not None:
            return {"quant_method": method, **old}
    raise FileError(
        f"{folder / 'config.json'} has no quantization_config, though the weights beside it are quantized; it belongs "
        "to another model: download the folder again"
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _CONFIG_BYTES else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: not readable as JSON ({str(error)[:80]}); download it again") from None
    if not isinstance(content, dict):
        raise FileError(f"{path}: expected a JSON object; download it again")
    return content


# -- GPTQ


def _gptq(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    version = config.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        raise UnsupportedError(
            f"{folder}: checkpoint_format {str(version)[:40]!r} is not known; known are gptq and gptq_v2: convert the "
            "model with the tool that made it"
        )
    for module in _modules(entries, ".qweight"):
        values = {**config, **_override(folder, config, module)}
        bits = _integer(folder, values, "bits", gptq.BITS)
        group = _group(folder, values, "group_size")
        indexed = f"{module}.g_idx" in entries
        format = Affine(bits, group, values.get("sym", True) is False, _precision(folder, entries, f"{module}.scales"))
        codec = GptqCodec(format, int(version == "gptq"), indexed)
        packed = _matrix(folder, entries, f"{module}.qweight")
        info = TensorInfo(f"{module}.weight", (packed[1], packed[0] * 32 // bits), codec.name, 0)
        names = {part: f"{module}.{part}" for part in codec.axes}
        yield fold(folder, codec, info, names, entries, said_by="quantization_config")


def _override(folder: Path, config: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What GPTQModel's `dynamic` says of one module: the first pattern that matches from its beginning."""
    rules = config.get("dynamic") or {}
    for pattern, values in rules.items() if isinstance(rules, dict) else ():
        try:
            matches = re.match(pattern.removeprefix("+:"), module)
        except re.error as error:
            raise FileError(f"{folder}: {pattern[:80]!r} in `dynamic` is no regular expression: {error}") from None
        if matches and not pattern.startswith("-:") and isinstance(values, dict):
            return values
    return {}


# -- AWQ


def _awq(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise UnsupportedError(
            f"{folder}: AWQ's version {version[:40]!r} is not known; known is gemm: quantize again with version gemm"
        )
    values = {"bits": config.get("w_bit"), "group_size": config.get("q_group_size")}
    values = {key: value for key, value in {**values, **config}.items() if value is not None}
    _integer(folder, values, "bits", (4,))
    group = _group(folder, values, "group_size")
    for module in _modules(entries, ".qweight"):
        codec = AwqCodec(Affine(4, group, True, _precision(folder, entries, f"{module}.scales")))
        packed = _matrix(folder, entries, f"{module}.qweight")
        info = TensorInfo(f"{module}.weight", (8 * packed[1], packed[0]), codec.name, 0)
        names = {part: f"{module}.{part}" for part in codec.axes}
        yield fold(folder, codec, info, names, entries, said_by="quantization_config")


# -- compressed-tensors


def _compressed(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise FileError(f"{folder}: quantization_config has no config_groups; download config.json again")
    for module in _modules(entries, ".weight_scale"):
        packed = f"{module}.weight_packed" in entries
        if not packed and f"{module}.weight" not in entries:
            continue
        group = _group_naming(folder, groups, module)
        args = _arguments(folder, group)
        scale = _entry(folder, entries, f"{module}.weight_scale")
        precision = _precision(folder, entries, f"{module}.weight_scale")
        codec: PackedCodec | IntegerCodec | FloatCodec | StaticInput
        if packed:
            shape, codec = _packed(folder, args, entries, module, precision)
        else:
            shape = _matrix(folder, entries, f"{module}.weight")
            codec = _unpacked(folder, args, shape, scale, precision)
        beside = [f"{module}.{name}" for name in _BESIDE]
        if isinstance(codec, IntegerCodec) and not codec.format.asymmetric:
            beside.append(f"{module}.weight_zero_point")
        inputs, static = inputs_of(folder, group, module)
        if static and isinstance(inputs, InputRounding):
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
    shape = _entry(folder, entries, name).shape
    if shape not in ((), (1,)):
        raise FileError(f"{folder}: entry {name} is {list(shape)}; a tensor has one scale, [1]: make the file again")
    return StaticInput(codec, input_rounding, _precision(folder, entries, name), shape)


def _packed(
    folder: Path, args: Mapping[str, Any], entries: Entries, module: str, precision: str
) -> tuple[tuple[int, int], PackedCodec]:
    bits = _integer(folder, args, "num_bits", gptq.BITS)
    group = _strategy_group(folder, args, module)
    format = Affine(bits, group, args.get("symmetric", True) is False, precision)
    words = _matrix(folder, entries, f"{module}.weight_packed")
    groups = _matrix(folder, entries, f"{module}.weight_scale")[1]
    cols = groups * group if group else words[1] * 32 // bits
    return (words[0], cols), PackedCodec(format, f"{module}.weight_g_idx" in entries)


def _unpacked(
    folder: Path, args: Mapping[str, Any], shape: tuple[int, int], scale: HeaderEntry, precision: str
) -> IntegerCodec | FloatCodec:
    if args.get("type") == "float":
        if args.get("num_bits") != 8 or args.get("strategy") not in ("channel", "tensor"):
            raise UnsupportedError(
                f"{folder}: float weights of {args.get('num_bits')} bits by {args.get('strategy')} are not known; "
                "known are 8 bits by channel or tensor"
            )
        row = fp8(precision)
        if args["strategy"] == "tensor" or scale.shape in ((), (1,)):
            return FloatCodec(TensorWide(f"{row.name}-tensor", row), scale.shape)
        return FloatCodec(row)
    bits = _integer(folder, args, "num_bits", gptq.BITS)
    group = _strategy_group(folder, args, scale.name)
    return IntegerCodec(Affine(bits, group, args.get("symmetric", True) is False, precision))


def _group_naming(folder: Path, groups: Mapping[str, Mapping[str, Any]], module: str) -> Mapping[str, Any]:
    """The group that names the module, by name or "re:" pattern, else the one that names a class."""
    by_class: list[Mapping[str, Any]] = []
    for group in groups.values():
        targets = group.get("targets")
        for target in targets if isinstance(targets, list) else ():
            if target == module or (str(target).startswith("re:") and _matches(folder, target[3:], module)):
                return group
            if "." not in str(target):
                by_class.append(group)
    if not by_class:
        raise FileError(f"{folder}: no group of quantization_config names {module}, whose weight is quantized")
    return by_class[0]


def _arguments(folder: Path, group: Mapping[str, Any]) -> Mapping[str, Any]:
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise FileError(f"{folder}: a group of quantization_config says nothing of weights; download it again")
    return weights


def _matches(folder: Path, pattern: str, module: str) -> bool:
    try:
        return re.match(pattern, module) is not None
    except re.error as error:
        raise FileError(f"{folder}: target {pattern[:80]!r} is no regular expression: {error}") from None


def _strategy_group(folder: Path, args: Mapping[str, Any], name: str) -> int:
    """Weights in a group; 0 for a whole row."""
    if args.get("strategy") == "channel":
        return 0
    if args.get("strategy") in ("group", None) and args.get("group_size") is not None:
        return _group(folder, args, "group_size")
    raise UnsupportedError(
        f"{folder}: {name}: integers by {str(args.get('strategy'))[:40]} are not known; known are by group and channel"
    )


# -- what all share


def _modules(entries: Entries, suffix: str) -> list[str]:
    return [name.removesuffix(suffix) for name in entries if name.endswith(suffix)]


def _entry(folder: Path, entries: Entries, name: str) -> HeaderEntry:
    if name not in entries:
        raise FileError(f"{folder}: entry {name} is missing; the file is damaged: download it again")
    return entries[name][1]


def _matrix(folder: Path, entries: Entries, name: str) -> tuple[int, int]:
    shape = _entry(folder, entries, name).shape
    if len(shape) != 2:
        raise FileError(f"{folder}: entry {name} has {len(shape)} dimensions, not 2; the file is damaged")
    return shape[0], shape[1]


def _precision(folder: Path, entries: Entries, name: str) -> str:
    dtype = _entry(folder, entries, name).dtype
    if dtype not in _PRECISIONS:
        raise FileError(f"{folder}: entry {name} is {dtype}; expected F16, BF16 or F32: download it again")
    return _PRECISIONS[dtype]


def _integer(folder: Path, config: Mapping[str, Any], key: str, known: tuple[int, ...]) -> int:
    value = config.get(key)
    if type(value) is not int or value not in known:
        raise UnsupportedError(
            f"{folder}: quantization_config has {key} {str(value)[:40]}; known are {', '.join(map(str, known))}"
        )
    return value


def _group(folder: Path, config: Mapping[str, Any], key: str) -> int:
    """Weights in a group; 0 for a whole row (-1 in the file)."""
    value = config.get(key)
    if type(value) is not int or value == 0 or not -1 <= value < 1 << 32:
        raise FileError(f"{folder}: quantization_config has {key} {str(value)[:40]}; expected -1 or a positive number")
    return 0 if value == -1 else value
