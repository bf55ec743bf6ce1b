"""ModelOpt's unified checkpoints, held against the published layout; to run them needs a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bitsmith
from bitsmith.containers.safetensors import SafetensorsSource

UP = "model.layers.0.mlp.up_proj"
CALIBRATION: dict[str, Any] = {
    "calibration": "default",
    "calibration_tokens": 256,
    "calibration_context": 64,
    "method": "nearest",
}
LAYOUTS = {  # of `UP`, [128, 64], as nvidia-modelopt 0.47 exports it
    "fp8": {"weight": ("float8_e4m3fn", (128, 64)), "weight_scale": ("float32", ()), "input_scale": ("float32", ())},
    "int4": {
        "weight": ("uint8", (64, 64)),
        "weight_scale": ("float32", (128, 1)),
        "pre_quant_scale": ("bfloat16", (64,)),
    },
    "w4a8": {
        "weight": ("uint8", (64, 64)),
        "weight_scale": ("float32", (128, 1)),
        "pre_quant_scale": ("bfloat16", (64,)),
        "weight_scale_2": ("float32", ()),
        "input_scale": ("float32", ()),
    },
    "nvfp4": {
        "weight": ("uint8", (128, 32)),
        "weight_scale": ("float8_e4m3fn", (128, 4)),
        "weight_scale_2": ("float32", ()),
        "input_scale": ("float32", ()),
    },
    "nvfp4a16": {
        "weight": ("uint8", (128, 32)),
        "weight_scale": ("float8_e4m3fn", (128, 4)),
        "weight_scale_2": ("float32", ()),
    },
}
ALGORITHMS = {"fp8": "FP8", "int4": "W4A16_AWQ", "w4a8": "W4A8_AWQ", "nvfp4": "NVFP4", "nvfp4a16": "W4A16_NVFP4"}


def plain(entries: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The weight as its entries say it: every step as in the published layout, with torch."""
    weight, scale = entries[f"{UP}.weight"], entries[f"{UP}.weight_scale"].float()
    if name == "fp8":
        return weight.float() * scale
    if name in ("int4", "w4a8"):
        nibbles = torch.stack((weight & 15, weight >> 4), 1).reshape(-1, weight.shape[1]).int()
        return torch.where(nibbles > 7, nibbles - 16, nibbles) * scale.repeat_interleave(64, 1)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nibbles = torch.stack((weight & 15, weight >> 4), -1).reshape(len(weight), -1).long()
    values = table[nibbles & 7] * torch.where(nibbles > 7, -1.0, 1.0)
    return values * scale.repeat_interleave(16, 1) * entries[f"{UP}.weight_scale_2"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layout(tiny: Path, tmp_path: Path, name: str) -> None:
    made = bitsmith.quantize(tiny, to=f"modelopt/{name}", out=tmp_path / "out", **CALIBRATION).out
    said = json.loads((made / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == ALGORITHMS[name]
    assert said["exclude_modules"] == ["lm_head"]
    assert said["kv_cache_quant_algo"] is None
    assert said.get("group_size") == {"fp8": None, "int4": 64, "w4a8": 64}.get(name, 16)
    config = json.loads((made / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["quant_algo"]) == ("modelopt", ALGORITHMS[name])
    entries = load_file(made / "model.safetensors")
    own = {key.removeprefix(f"{UP}."): value for key, value in entries.items() if key.startswith(UP)}
    assert {key: (str(v.dtype).removeprefix("torch."), tuple(v.shape)) for key, v in own.items()} == LAYOUTS[name]
    source = SafetensorsSource(made)
    torch.testing.assert_close(torch.tensor(source.rows(f"{UP}.weight")), plain(entries, name), rtol=1e-6, atol=0)
    original = SafetensorsSource(tiny).rows(f"{UP}.weight")
    assert ((source.rows(f"{UP}.weight") - original) ** 2).sum() < 0.02 * (original**2).sum()
    assert not bitsmith.inspect(made, verify=True).problems
    assert np.isfinite(bitsmith.load(made, kernel="torch").logits(np.array([[3, 4, 5]]))).all()


def test_modules_that_differ_are_listed(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="modelopt/fp8", rules=["mlp=nvfp4"], out=tmp_path / "out", **CALIBRATION).out
    said = json.loads((made / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == "MIXED_PRECISION"
    assert said["quantized_layers"][UP] == {"quant_algo": "NVFP4", "group_size": 16}
    assert said["quantized_layers"]["model.layers.1.self_attn.q_proj"] == {"quant_algo": "FP8"}
    assert len(said["quantized_layers"]) == 14
    layouts = {name: info.layout for name, info in SafetensorsSource(made).tensors.items()}
    assert layouts[f"{UP}.weight"].startswith("modelopt/nvfp4")
    assert layouts["model.layers.1.self_attn.q_proj.weight"].startswith("modelopt/fp8")


def test_the_second_scale_is_the_inverse_of_the_global_scale(tiny: Path, tmp_path: Path) -> None:
    ours = load_file(bitsmith.quantize(tiny, to="modelopt/nvfp4a16", out=tmp_path / "a").out / "model.safetensors")
    other = load_file(bitsmith.quantize(tiny, to="compressed/nvfp4", out=tmp_path / "b").out / "model.safetensors")
    product = float(ours[f"{UP}.weight_scale_2"]) * float(other[f"{UP}.weight_global_scale"])
    assert product == pytest.approx(1.0, rel=1e-6)
    assert torch.equal(ours[f"{UP}.weight"], other[f"{UP}.weight_packed"])
