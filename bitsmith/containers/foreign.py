"""Names the method of a folder that another tool quantized in a way that bitsmith does not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsmith.containers.floats import FLOATS
from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.errors import UnsupportedError
from bitsmith.quant.tensor import TensorInfo

_ORIGINAL = "Name the original model instead"
_DEQUANTIZE = (
    f"{_ORIGINAL}, or dequantize it: transformers' model.dequantize(), then save_pretrained without quantization_config"
)
# `quant_method` in config.json: the method's name, and what to do
_METHODS: Mapping[str, tuple[str, str]] = {
    "bitsandbytes": ("bitsandbytes in a variant that is not known", _DEQUANTIZE),
    "bitsandbytes_4bit": ("bitsandbytes, 4 bit, in a variant that is not known", _DEQUANTIZE),
    "bitsandbytes_8bit": ("bitsandbytes, 8 bit, in a variant that is not known", _DEQUANTIZE),
    "quanto": ("quanto", _ORIGINAL),
    "hqq": ("HQQ", f"{_ORIGINAL}, or dequantize it with the hqq package"),
    "eetq": ("EETQ", _ORIGINAL),
    "bitnet": ("BitNet", f"{_ORIGINAL} in bfloat16 (its name often ends in -bf16)"),
    "mxfp4": ("MXFP4", f"{_ORIGINAL} in bfloat16, or load it with Mxfp4Config(dequantize=True) and save it"),
    "auto-round": ("AutoRound", f"{_ORIGINAL}, or export it again with `--format auto_gptq` or `--format auto_awq`"),
    "intel/auto-round": (
        "AutoRound",
        f"{_ORIGINAL}, or export it again with `--format auto_gptq` or `--format auto_awq`",
    ),
    "modelopt": ("NVIDIA ModelOpt", _ORIGINAL),
    "modelopt_fp4": ("NVIDIA ModelOpt, NVFP4", _ORIGINAL),
    "mlx": ("MLX", f"{_ORIGINAL}, or dequantize it: `mlx_lm.convert --dequantize`"),
    "fp8": ("FP8", _ORIGINAL),
    "fbgemm_fp8": ("FBGEMM FP8", _ORIGINAL),
    "torchao": ("torchao", _ORIGINAL),
    "aqlm": ("AQLM", _ORIGINAL),
    "vptq": ("VPTQ", _ORIGINAL),
    "spqr": ("SpQR", _ORIGINAL),
    "quark": ("AMD Quark", _ORIGINAL),
    "higgs": ("HIGGS", _ORIGINAL),
    "quip": ("QuIP#", _ORIGINAL),
    "gptq": ("GPTQ in a variant that is not known", _ORIGINAL),
    "awq": ("AWQ in a variant that is not known", _ORIGINAL),
    "compressed-tensors": ("compressed-tensors in a variant that is not known", _ORIGINAL),
}
# endings of tensors that identify a method where the configuration does not; the first that is found decides
_MARKS: tuple[tuple[str, str], ...] = (
    (".SCB", "bitsandbytes_8bit"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes_4bit"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes_4bit"),
    (".absmax", "bitsandbytes_4bit"),
    (".quant_map", "bitsandbytes_4bit"),
    (".W_q", "hqq"),
    ("._data", "quanto"),
    ("._scale", "quanto"),
    (".codebooks", "aqlm"),
    ("_blocks", "mxfp4"),
    (".weight_scale_2", "modelopt_fp4"),
    (".weight_scales", "eetq"),
)
# endings of scales of some method; a model without quantization has none of them
_SCALES: tuple[str, ...] = (".weight_scale", ".weight_scale_inv", ".weight_zero_point", ".weight_packed")
_SCALES += (".scales", ".qweight", ".qzeros")


def foreign_quantization(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> UnsupportedError | None:
    """The error for a folder whose weights are codes of an unknown method; None if every weight can be read.

    config: the contents of config.json
    tensors: the tensors, without those that a container has folded into whole weights
    """
    bare = _bare_fp8(folder, config, tensors)
    if bare is not None:
        return bare
    evidence = next((name for name, info in tensors.items() if _is_code(name, info, tensors)), None)
    if evidence is None:
        return None
    title, advice = _METHODS.get(
        key := _method(folder, config, tensors), (f"{key!r}" if key else "an unknown method", _ORIGINAL)
    )
    info = tensors[evidence]
    return UnsupportedError(
        f"{folder} is quantized with {title} ({evidence} is {info.layout}), which bitsmith does not read. {advice}."
    )


def _bare_fp8(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> UnsupportedError | None:
    """The error for FP8 weights without scales in a folder whose configuration says that they have some."""
    said = _said(folder, config)
    name = next((name for name, info in tensors.items() if info.layout.startswith("f8_e") and info.rows > 1), None)
    if name is None or not said:
        return None
    return UnsupportedError(
        f"{folder}: config.json says that the model is quantized with {_METHODS.get(said, (repr(said), ''))[0]}, but "
        f"{name} is {tensors[name].layout} and has no scales beside it. {_ORIGINAL}, or fetch this one again; if its "
        "weights need no scales, remove quantization_config."
    )


def _is_code(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the tensor holds codes or scales of an unknown method."""
    if any(name.endswith(mark) for mark, _ in _MARKS) or name.endswith(_SCALES):
        return True
    plain = info.layout in FLOATS or "/" in info.layout or info.layout.startswith("f8_e")
    return not plain and info.rows > 1 and name.endswith(("weight", "_proj", "_scales"))


def _method(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """A key of `_METHODS`, or the method's own name; empty if nothing names it."""
    said = _said(folder, config)
    found = next((key for mark, key in _MARKS if any(name.endswith(mark) for name in tensors)), "")
    if said == "bitsandbytes" and found.startswith("bitsandbytes"):
        return found
    if said == "modelopt" and found == "modelopt_fp4":
        return found
    return said or found


def _said(folder: Path, config: Mapping[str, Any]) -> str:
    for key in ("quantization_config", "compression_config"):
        block = config.get(key)
        if isinstance(block, dict) and block.get("quant_method"):
            return str(block["quant_method"]).lower()[:40]
    block = config.get("quantization")
    if isinstance(block, dict) and "group_size" in block:
        return "mlx"
    if (folder / "hf_quant_config.json").is_file():
        return "modelopt"
    if (folder / "quanto_qmap.json").is_file() or (folder / "quantization_map.json").is_file():
        return "quanto"
    block = config.get("quantization_config")
    if isinstance(block, dict) and "group_size" in block and "bits" in block:  # as mlx_lm writes it
        return "mlx"
    return ""


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.json, or nothing if it is missing. Raises FileError if it is not JSON."""
    return read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
