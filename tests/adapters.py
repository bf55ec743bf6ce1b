"""Random adapters in PEFT's layout, written without peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bitsmith.models.checkpoint import open_checkpoint

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    folder: Path,
    base: Path | str,
    *,
    targets: tuple[str, ...] = ALL,
    rank: int = 4,
    size: float = 0.1,
    tensors: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """An adapter of every layer of a Llama whose name ends in one of `targets`; `changes`: of its configuration."""
    rng = np.random.default_rng(7)
    source = open_checkpoint(base).source
    found = {}
    for name, info in source.tensors.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            prefix = f"base_model.model.{module}.lora_"
            found[f"{prefix}A.weight"] = (rng.standard_normal((rank, info.cols)) * size).astype(np.float32)
            found[f"{prefix}B.weight"] = (rng.standard_normal((info.rows, rank)) * size).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "base_model_name_or_path": str(base),
        "bias": "none",
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(found if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder
