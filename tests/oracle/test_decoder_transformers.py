"""The decoder's logits against transformers', in float32, on small random models of each family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.hf_config_writer import config_to_hf
from bitsmith.models.arch.names import is_permuted, permute_rows
from bitsmith.models.arch.rope import rope_frequencies, rope_magnitude
from bitsmith.runtime.decoder import Decoder
from tests.runtime.small import decoder_of, from_state_dict

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-no-groups": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 4}),
    "llama-one-kv-head": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama-biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": (LlamaConfig, LlamaForCausalLM, {"head_dim": 24}),
    "llama-linear": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LINEAR}),
    "llama-yarn": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": YARN}),
    "llama-yarn-options": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": YARN | {"attention_factor": 0.9, "beta_fast": 8.0, "beta_slow": 2.0}},
    ),
    "llama-yarn-mscale": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    ),
    "llama-llama3": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3}),
    "mistral-full": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 7, "head_dim": 32}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2-window": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
    "qwen3-tied": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias-window": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {"attention_bias": True, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0},
    ),
}


def _oracle(name: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    make_config, make_model, options = MODELS[name]
    hf_config = make_config(**(SHAPE | options))
    torch.manual_seed(0)
    model = make_model(hf_config).float().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    values = hf_config.to_dict()
    values["architectures"] = [make_model.__name__]
    return model, values


def _ours(model: PreTrainedModel, values: dict[str, Any]) -> Decoder:
    config = config_from_hf(values)
    return decoder_of(config, from_state_dict(config, model.state_dict()))


def _tokens(batch: int, count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, SHAPE["vocab_size"], (batch, count))


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal(name: str) -> None:
    model, values = _oracle(name)
    tokens = _tokens(2, 40)
    with torch.no_grad():
        expected = model(torch.as_tensor(tokens)).logits
    assert expected.std() > 0.5, "a flat oracle would hide errors"
    torch.testing.assert_close(_ours(model, values).forward(tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2-window", "qwen3"])
def test_batch_of_unequal_lengths(name: str) -> None:
    model, values = _oracle(name)
    tokens, counts = _tokens(3, 24), np.array([24, 19, 7])
    mask = torch.as_tensor((np.arange(24) < counts[:, None]).astype(np.int64))
    with torch.no_grad():
        expected = model(torch.as_tensor(tokens), attention_mask=mask).logits
    ours = _ours(model, values)
    cache = ours.new_cache(30, batch=3)
    logits = ours.forward(tokens, cache, counts=counts)
    assert torch.isfinite(logits).all()
    for row, count in enumerate(counts):
        torch.testing.assert_close(logits[row, :count], expected[row, :count], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "llama-llama3", "mistral-window", "qwen2"])
def test_permuted_rows_with_interleaved_rotation(name: str) -> None:
    """GGUF's llama layout gives the same logits: rows permuted, pairs neighbours."""
    from dataclasses import replace

    model, values = _oracle(name)
    config = config_from_hf(values)
    arrays = from_state_dict(config, model.state_dict())
    for key in arrays:
        if is_permuted(key):
            arrays[key] = permute_rows(arrays[key], config.heads if "attn_q" in key else config.kv_heads)
    swapped = replace(config, rope=replace(config.rope, interleaved=True))
    tokens = _tokens(2, 33)
    with torch.no_grad():
        expected = model(torch.as_tensor(tokens)).logits
    torch.testing.assert_close(decoder_of(swapped, arrays).forward(tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_rotary_frequencies(name: str) -> None:
    model, values = _oracle(name)
    rope = config_from_hf(values).rope
    theirs = model.model.rotary_emb
    np.testing.assert_allclose(rope_frequencies(rope), theirs.inv_freq.numpy(), rtol=2e-6)
    assert rope_magnitude(rope) == pytest.approx(theirs.attention_scaling, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_config_round_trip(name: str) -> None:
    """What we write as config.json, transformers reads as the same model."""
    make_config, make_model, _ = MODELS[name]
    _, values = _oracle(name)
    config = config_from_hf(values)
    written = config_to_hf(config)
    assert config_from_hf(written) == config
    reread = make_config(**{k: v for k, v in written.items() if k not in ("architectures", "model_type")})
    again = reread.to_dict() | {"architectures": [make_model.__name__]}
    assert config_from_hf(again) == config
