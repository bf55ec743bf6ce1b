"""Folders from other tools: finds the entries of each weight with config.json's `quantization_config`.

Known are GPTQ (AutoGPTQ, GPTQModel, optimum), AWQ (AutoAWQ) and compressed-tensors (llm-compressor). Entries of other
methods remain separate tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsmith.containers import module_containers
from bitsmith.containers.composite import CompositeTensor, Entries
from bitsmith.containers.hf_folder import read_object
from bitsmith.errors import FileError


def fold_quantized(folder: Path, entries: Entries) -> list[CompositeTensor]:
    """The quantized weights of the checkpoint in `folder`; empty if no known method quantized it.

    Raises FileError if entries contradict the configuration, UnsupportedError for an unknown variant.
    """
    containers = module_containers().values()
    marks = tuple(mark for container in containers for mark in container.marks)
    if not any(name.endswith(marks) for name in entries):
        return []
    config = _quantization_config(folder)
    if config is None:
        return []
    method = str(config.get("quant_method")).lower()
    reader = next((container.read for container in containers if container.quant_method == method), None)
    return [] if reader is None else list(reader(folder, config, entries))


def _quantization_config(folder: Path) -> Mapping[str, Any] | None:
    """`quantization_config`, or the separate file of older tools; None if config.json is missing."""
    whole = _read_json(folder / "config.json")
    if whole is None:
        return None
    for key in ("quantization_config", "compression_config"):
        if isinstance(whole.get(key), dict):
            found: Mapping[str, Any] = whole[key]
            return found
    for container in module_containers().values():
        old = _read_json(folder / container.old_config) if container.old_config else None
        if old is not None:
            return {"quant_method": container.quant_method, **old}
    raise FileError(
        f"{folder / 'config.json'} has no quantization_config, though the folder's weights are quantized; it belongs "
        "to another model: download the folder again"
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_object(path) if path.exists() else None
