"""Folders from other tools: finds the entries of each weight with config.json's `quantization_config`.

Known are GPTQ (AutoGPTQ, GPTQModel, optimum), AWQ (AutoAWQ), compressed-tensors (llm-compressor), MLX, FP8 weights
with scales of many tools, and the MXFP4 stacks of gpt-oss. Entries of other methods remain separate tensors, see
`foreign`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsmith.containers import module_containers
from bitsmith.containers.composite import CompositeTensor, Entries
from bitsmith.containers.fp8_reader import fold_fp8
from bitsmith.containers.hf_folder import read_object
from bitsmith.containers.mxfp4_reader import fold_mxfp4
from bitsmith.errors import FileError

_PACKED = (".qweight", ".weight_packed")  # parts that nothing else in a folder explains
_FP8 = "F8_E4M3"


def fold_quantized(folder: Path, entries: Entries) -> list[CompositeTensor]:
    """The quantized weights of the checkpoint in `folder`; empty if no known method quantized it.

    Raises FileError if entries contradict the configuration, UnsupportedError for an unknown variant.
    """
    containers = module_containers().values()
    marks = tuple(mark for container in containers for mark in container.marks)
    packed = any(name.endswith(_PACKED) for name in entries)
    stacks = list(fold_mxfp4(folder, entries))
    if stacks:
        return stacks
    if not any(name.endswith(marks) or entry.dtype == _FP8 for name, (_, entry) in entries.items()):
        return []
    config = _quantization_config(folder, required=packed)
    method = "" if config is None else str(config.get("quant_method")).lower()
    reader = next((container.read for container in containers if container.quant_method == method), None)
    found = [] if reader is None or config is None else list(reader(folder, config, entries))
    used = {name for weight in found for name in (*weight.entries.values(), *weight.beside)}
    rest = {name: entry for name, entry in entries.items() if name not in used}
    return [*found, *fold_fp8(folder, config, rest)]


def _quantization_config(folder: Path, *, required: bool) -> Mapping[str, Any] | None:
    """`quantization_config`, or the separate file of older tools; None if config.json is missing.

    required: raise FileError if config.json is there, but says nothing of a quantization; else None
    """
    whole = _read_json(folder / "config.json")
    if whole is None:
        return None
    mlx = whole.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx:  # MLX's own key, which `quantization_config` only repeats
        return {**mlx, "quant_method": "mlx"}
    for key in ("quantization_config", "compression_config"):
        if isinstance(whole.get(key), dict):
            found: Mapping[str, Any] = whole[key]
            return found
    for container in module_containers().values():
        old = _read_json(folder / container.old_config) if container.old_config else None
        if old is not None:
            return {"quant_method": container.quant_method, **old}
    if not required:
        return None
    raise FileError(
        f"{folder / 'config.json'} has no quantization_config, though the folder's weights are quantized; it belongs "
        "to another model: download the folder again"
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_object(path) if path.exists() else None
