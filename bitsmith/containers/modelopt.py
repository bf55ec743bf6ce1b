"""Folders in the layout of NVIDIA ModelOpt's unified checkpoints, which TensorRT-LLM, vLLM and SGLang read on GPUs.

hf_quant_config.json has `quantization`: quant_algo, kv_cache_quant_algo, group_size, exclude_modules; where modules
differ, quant_algo is MIXED_PRECISION, and quantized_layers names each. config.json says the same in another form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.container import ModuleContainer, Modules, Scheme
from bitsmith.containers.hf_entries import entry_of, matrix_shape, modules, precision_of
from bitsmith.containers.modelopt_codecs import NVFP4_CODEC, Fp8Codec, Int4Codec, NvfpInput
from bitsmith.containers.module_lists import shell_patterns
from bitsmith.containers.static_input import INPUT_SCALE, StaticInput
from bitsmith.errors import FileError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.byte_scaled import NVFP4_TENSOR
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import TensorInfo
from bitsmith.version import __version__

CONFIG_FILE = "hf_quant_config.json"
_GROUPS = (128, 64, 32)
_ALGORITHMS = {  # kind of a scheme -> ModelOpt's name
    "fp8": "FP8",
    "int4": "W4A16_AWQ",
    "w4a8": "W4A8_AWQ",
    "nvfp4": "NVFP4",
    "nvfp4a16": "W4A16_NVFP4",
}
_FP8_INPUT = InputRounding("fp8", "tensor")
_INT4 = Scheme("int4", 4, optional_zeros=False, groups=_GROUPS, known_groups=_GROUPS)
_FLOAT4 = Scheme("nvfp4a16", 4, NVFP4_TENSOR.block, grouped=False, optional_zeros=False)
SCHEMES = {
    "fp8": Scheme("fp8", 8, 0, grouped=False, optional_zeros=False, scope="tensor", inputs="fp8", static=True),
    "int4": _INT4,
    "w4a8": replace(_INT4, kind="w4a8", inputs="fp8", static=True),
    "nvfp4": replace(_FLOAT4, kind="nvfp4", static=True),
    "nvfp4a16": _FLOAT4,
}


def _stored(scheme: Scheme, precision: str, version: int) -> tuple[Format, Any]:
    if scheme.kind == "fp8":
        fp8_codec = Fp8Codec(TensorWide("fp8-tensor", fp8()), ())
        return fp8_codec.format, StaticInput(fp8_codec, _FP8_INPUT, "f32", ())
    if scheme.kind in ("int4", "w4a8"):
        codec = Int4Codec(Affine(4, scheme.group or _GROUPS[0], precision="f32"), scheme.kind == "w4a8", precision)
        return codec.format, StaticInput(codec, _FP8_INPUT, "f32", ()) if codec.second else codec
    static = NvfpInput(NVFP4_CODEC, _FP8_INPUT, "f32", ())
    return NVFP4_TENSOR, static if scheme.kind == "nvfp4" else NVFP4_CODEC


def _layer(scheme: Scheme) -> dict[str, Any]:
    """What ModelOpt says of one module."""
    grouped = {} if scheme.kind == "fp8" else {"group_size": scheme.group}
    awq = {"has_zero_point": False, "pre_quant_scale": True} if scheme.kind in ("int4", "w4a8") else {}
    return {"quant_algo": _ALGORITHMS[scheme.kind], **grouped, **awq}


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    """One of `config_groups` of config.json, as ModelOpt's `convert_hf_quant_config_format` makes it."""
    bits = 8 if scheme.kind == "fp8" else 4
    group = {} if scheme.kind == "fp8" else {"group_size": scheme.group}
    weights = {"dynamic": False, "num_bits": bits, "type": "int" if scheme.kind == "int4" else "float", **group}
    if scheme.kind in ("int4", "nvfp4a16"):
        return {"weights": weights, "targets": targets}
    inputs = {"dynamic": False, "num_bits": 4 if scheme.kind == "nvfp4" else 8, "type": "float", **group}
    return {"input_activations": inputs, "weights": weights, "targets": targets}


def _configuration(modules: Modules) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    layers: dict[Scheme, list[str]] = {}
    for name, scheme in modules.others.items():
        layers.setdefault(scheme, []).append(name)
    mixed = bool(layers)
    targets = {modules.main: sorted(modules.of_main) if mixed else ["Linear"]}
    targets |= {scheme: sorted(names) for scheme, names in layers.items()}
    every = {name: _layer(scheme) for scheme, names in targets.items() for name in names} if mixed else {}
    return {
        "config_groups": {f"group_{i}": _group(scheme, names) for i, (scheme, names) in enumerate(targets.items())},
        **({"quantized_layers": every} if mixed else {}),
        "ignore": list(modules.kept),
        **({"quant_algo": "MIXED_PRECISION"} if mixed else _layer(modules.main)),
        "producer": {"name": "bitsmith", "version": __version__},
        "quant_method": "modelopt",
    }


def _further_files(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    named = ("quant_algo", "group_size", "has_zero_point", "pre_quant_scale", "quantized_layers")
    said = {key: config[key] for key in named if key in config}
    quantization = {"kv_cache_quant_algo": None, **said, "exclude_modules": config["ignore"]}
    return {CONFIG_FILE: {"producer": config["producer"], "quantization": quantization}}


def _warnings(main: Scheme, version: int) -> list[str]:
    found = ["ModelOpt's folders run on GPUs; bitsmith's tests hold their layout against ModelOpt's own code"]
    if main.kind == "nvfp4":
        found.append("runtimes round the inputs to NVFP4 too; bitsmith measures and runs with inputs as they are")
    return found


def _read(folder: Path, config: Mapping[str, Any], entries: Entries) -> Iterator[CompositeTensor]:
    for module in modules(entries, ".weight_scale"):
        if f"{module}.weight" not in entries:
            continue
        shape, codec = _codec(folder, entries, module)
        if codec is None:
            continue  # FP8 in blocks or by channel, which `fp8_reader` reads
        inputs = None
        if f"{module}.{INPUT_SCALE}" in entries:
            rank = entry_of(folder, entries, f"{module}.{INPUT_SCALE}").shape
            if rank not in ((), (1,)):
                raise FileError(f"{folder}: entry {module}.{INPUT_SCALE} is {list(rank)}; expected one number")
            precision = precision_of(folder, entries, f"{module}.{INPUT_SCALE}")
            kind = NvfpInput if codec is NVFP4_CODEC else StaticInput
            codec = kind(codec, _FP8_INPUT, precision, rank)
            inputs = codec.rounding
        info = TensorInfo(f"{module}.weight", shape, codec.name, 0)
        names = {part: f"{module}.{part}" for part in codec.layout(shape)}
        beside = tuple(f"{module}.{name}" for name in ("k_scale", "v_scale") if f"{module}.{name}" in entries)
        found = fold(folder, codec, info, names, entries, said_by="hf_quant_config.json", beside=beside)
        yield replace(found, inputs=inputs)


def _codec(folder: Path, entries: Entries, module: str) -> tuple[tuple[int, int], Any]:
    """The shape and the codec of a weight, by its entries; no codec for those of other readers."""
    rows, cols = matrix_shape(folder, entries, f"{module}.weight")
    dtype = entry_of(folder, entries, f"{module}.weight").dtype
    scale = entry_of(folder, entries, f"{module}.weight_scale")
    if dtype == "F8_E4M3":
        whole = scale.shape == () and scale.dtype == "F32"
        return (rows, cols), Fp8Codec(TensorWide("fp8-tensor", fp8()), ()) if whole else None
    if dtype != "U8":
        return (rows, cols), None
    if scale.dtype == "F8_E4M3":
        return (rows, 2 * cols), NVFP4_CODEC
    groups = matrix_shape(folder, entries, f"{module}.weight_scale")[1]
    if not groups or cols % groups:
        raise FileError(f"{folder}: {module} has {groups} scales for rows of {cols} weights; download it again")
    factors = f"{module}.pre_quant_scale"
    precision = precision_of(folder, entries, factors) if factors in entries else ""
    second = f"{module}.weight_scale_2" in entries
    return (2 * rows, cols), Int4Codec(Affine(4, cols // groups, precision="f32"), second, precision)


CONTAINER = ModuleContainer(
    name="modelopt",
    codec=lambda format: None,
    runtimes=frozenset({"tensorrt-llm", "vllm"}),
    schemes=SCHEMES,
    stored=_stored,
    configuration=_configuration,
    further_files=_further_files,
    warnings=_warnings,
    kept_list=lambda config: config["ignore"],
    skipped_by=shell_patterns,
    quant_method="modelopt",
    marks=(".weight_scale_2", ".weight_scale"),
    old_config=CONFIG_FILE,
    read=_read,
)
