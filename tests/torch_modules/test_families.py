"""`quantize_module` on transformers' families: the census of each, generating, saving, loading."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")

import bitsmith.torch
from tests.torch_modules.models import FAMILIES, built, tokens

# parameters that are quantized, in all layers of a model of two; and what stays besides norms, biases, tables and heads
CENSUS: dict[str, tuple[int, tuple[str, ...]]] = {
    "llama": (14, ()),
    "qwen3": (14, ()),
    "qwen3_moe": (12, ("mlp.gate.weight",)),
    "mixtral": (12, ("mlp.gate.weight",)),
    "gemma3": (14, ()),
    "phi3": (8, ()),
    "gpt_oss": (12, ("mlp.router.weight",)),
    "gpt2": (8, ()),
    "qwen2_vl": (20, ("visual.patch_embed.proj.weight",)),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", FAMILIES)
def test_census(name: str) -> None:
    model = built(name)
    parameters = {key: parameter.numel() for key, parameter in model.named_parameters()}
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    census = bitsmith.torch.quantize_module(model, "nf4")
    count, stays = CENSUS[name]
    assert {row.name: row.weights for row in census} == parameters
    assert census.bytes_before == nbytes
    assert len(census.quantized) == count
    assert all(row.bits_after == 4.5 and row.bits_before == 32 for row in census.quantized)
    assert all(any(row.name.endswith(end) for row in census.unexpected) for end in stays)
    assert all(any(row.name.endswith(end) for end in stays) for row in census.unexpected)
    assert census.unexpected_share < 0.05
    assert all(row.reason for row in census.stayed)


@pytest.mark.parametrize("name", FAMILIES)
def test_same_as_with_decoded_weights(name: str) -> None:
    model = built(name)
    bitsmith.torch.quantize_module(model, "nf4")
    dense = copy.deepcopy(model)
    bitsmith.torch.dequantize_module(dense)
    assert not any(isinstance(module, bitsmith.torch.StoredWeight) for module in dense.modules())
    expected = logits(dense)
    assert torch.allclose(logits(model), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_near_the_original(name: str) -> None:
    model = built(name)
    expected = logits(model)
    bitsmith.torch.quantize_module(model, "int8-g64")
    assert float((logits(model) - expected).norm() / expected.norm()) < (0.2 if name == "gpt_oss" else 0.05)


@pytest.mark.parametrize("name", FAMILIES)
def test_generates(name: str) -> None:
    model = built(name)
    bitsmith.torch.quantize_module(model, "int4")
    made = model.generate(tokens(), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert made.shape == (1, 16)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_by_transformers(name: str, tmp_path: Path) -> None:
    model = built(name)
    bitsmith.torch.quantize_module(model, "nf4")
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_quantized_while_loading(name: str, tmp_path: Path) -> None:
    model = built(name)
    model.save_pretrained(tmp_path)
    loaded = bitsmith.torch.from_pretrained(tmp_path, "nf4", dtype=torch.float32)
    assert type(loaded) is type(model)
    bitsmith.torch.quantize_module(model, "nf4")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_state_dict(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_model

    model, other = built(name), built(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    bitsmith.torch.quantize_module(model, "int4-g64-asym")
    bitsmith.torch.quantize_module(other, "int4-g64-asym")
    assert not torch.equal(logits(other), logits(model))
    save_model(model, str(tmp_path / "model.safetensors"))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=not model.config.tie_word_embeddings)
    assert torch.equal(logits(other), logits(model))
