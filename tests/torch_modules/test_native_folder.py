"""Folders of `bitsmith quantize --to native/...` in transformers, and what transformers saves in bitsmith."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")

from transformers import AutoModelForCausalLM

import bitsmith
import bitsmith.torch
from bitsmith.errors import UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import load_weights, weight_reader
from tests.torch_modules.models import built, tokens


def ours(folder: Path) -> np.ndarray:
    """Logits of bitsmith's own decoder: float32 [n, vocab]."""
    checkpoint, kernel, ops = open_checkpoint(folder), DenseKernel(), TorchOps()
    weights = load_weights(checkpoint.config, weight_reader(checkpoint), kernel, ops)
    with torch.no_grad():
        found = Decoder(checkpoint.config, weights, ops).forward(tokens().numpy())
    return np.asarray(ops.numpy(found))[0]


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(tokens()).logits[0].float())


@pytest.mark.parametrize("format", ["int4-g64", "nf4", "int8-channel", "fp8", "nf4-dq"])
def test_native_folders_load_in_transformers(format: str, tmp_path: Path) -> None:
    bitsmith.quantize("reference", to=f"native/{format}", out=str(tmp_path / "made"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    assert any(isinstance(module, bitsmith.torch.StoredWeight) for module in model.modules())
    expected = ours(tmp_path / "made")
    assert np.abs(theirs(model) - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_what_transformers_saves_runs_in_bitsmith(name: str, tmp_path: Path) -> None:
    model = built(name)
    bitsmith.torch.quantize_module(model, "nf4")
    model.save_pretrained(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "q_proj.weight" in file.metadata()["bitsmith.tensors"]
    expected = theirs(model)
    assert np.abs(ours(tmp_path) - expected).max() < 1e-3 * np.abs(expected).max()


def test_quantized_folders_are_not_quantized_again(tmp_path: Path) -> None:
    model = built("llama")
    bitsmith.torch.quantize_module(model, "nf4")
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is quantized already"):
        bitsmith.torch.from_pretrained(tmp_path)
