"""Fields and keys that make layers differ in their shapes: read, written, and refused where they contradict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.errors import BitsmithError, FileError, UnsupportedError
from bitsmith.models.arch.block import expected_tensors, linear_groups
from bitsmith.models.arch.config import LayerSpec, ModelConfig
from bitsmith.models.arch.gguf_config import config_from_gguf, config_to_gguf
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.hf_config_writer import config_to_hf
from bitsmith.quant.tensor import TensorInfo

KINDS = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention", "full_attention"]
FIELDS: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 8,
    "sliding_window": 12,
    "layer_types": KINDS,
    "rms_norm_eps": 2**-20,
}


def test_layers_have_shapes_of_their_own() -> None:
    config = config_from_hf(FIELDS | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True})
    assert config.specs[0] == LayerSpec(32, 2, 96, window=12, rope=1)
    assert config.specs[3] == LayerSpec(64, 2, 96, rope=0)
    assert config.specs[4] == LayerSpec(32, 2, 192, window=12, rope=1, keys_of=2)
    assert config.specs[5] == LayerSpec(64, 2, 192, rope=0, keys_of=3)
    assert config.kept_layers == {2, 3}
    tensors = expected_tensors(config)
    assert tensors["blk.3.attn_q.weight"] == (256, 64)
    assert tensors["blk.5.ffn_down.weight"] == (64, 192)
    assert not {"blk.4.attn_k.weight", "blk.5.attn_v.weight", "blk.5.attn_k_norm.weight"} & tensors.keys()
    assert tensors["per_layer_token_embd.weight"] == (128, 48)
    assert sum(factor == 1.0 for factor in config.rope.freq_factors) == 8  # a quarter of 32 pairs
    groups = {group.name: group for group in linear_groups(config, 4)}
    assert groups["attn_in"].linears == ("attn_q",)
    assert groups["o_proj_input"].producer is None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_shared_layers": 2, "use_double_wide_mlp": True},
        {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0},
        {"final_logit_softcapping": 30.0, "rope_parameters": None},
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    ],
)
def test_what_is_written_is_read(changes: dict[str, Any]) -> None:
    config = config_from_hf(FIELDS | changes)
    assert config_from_hf(config_to_hf(config)) == config


def test_keys_of_the_last_layer_and_of_transformers_5() -> None:
    """transformers takes the last layer for a full one; per_layer_config says what other fields said before."""
    old = {name: value for name, value in FIELDS.items() if name != "global_head_dim"}
    full = {"head_dim": 64, "num_key_value_heads": 1}
    sliding = [*KINDS[:5], "sliding_attention"]
    new = config_from_hf(old | {"attention_k_eq_v": True, "per_layer_config": {"3": full, "5": full}})
    assert new == config_from_hf(FIELDS | {"attention_k_eq_v": True, "num_global_key_value_heads": 1})
    assert config_from_hf(FIELDS | {"layer_types": sliding}) == config_from_hf(FIELDS)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"num_kv_shared_layers": 3}, FileError, "num_kv_shared_layers: expected a layer of each kind"),
        ({"num_kv_shared_layers": 6}, FileError, "num_kv_shared_layers"),
        ({"global_head_dim": 63}, FileError, "global_head_dim: expected an even number"),
        ({"vocab_size_per_layer_input": 64}, FileError, "vocab_size_per_layer_input: expected vocab_size"),
        ({"attention_k_eq_v": True, "num_global_key_value_heads": 3}, FileError, "num_global_key_value_heads"),
        ({"use_bidirectional_attention": "all"}, UnsupportedError, "use_bidirectional_attention = 'all'"),
        ({"per_layer_config": {"3": {"head_dim": 64}}}, UnsupportedError, "per_layer_config: expected the same"),
        ({"per_layer_config": {"3": {"sliding_window": 4}}}, UnsupportedError, "per_layer_config: expected the same"),
        ({"per_layer_config": [1]}, FileError, "per_layer_config: expected an object by layer"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "proportional", "factor": 2.0}}},
            UnsupportedError,
            "proportional rotation with factor 2",
        ),
    ],
)
def test_contradictions(changes: dict[str, Any], error: type[BitsmithError], words: str) -> None:
    with pytest.raises(error, match=words):
        config_from_hf(FIELDS | changes)


SHARED = {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "final_logit_softcapping": 30.0}
SAME = {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0}


class _Source:
    """Tensors by name and shape, and the divisors of rotations."""

    path, metadata = Path("some.gguf"), dict[str, Any]()

    def __init__(self, config: ModelConfig) -> None:
        shapes = {**expected_tensors(config), "rope_freqs.weight": (len(config.rope.freq_factors),)}
        self.tensors = {name: TensorInfo(name, shape, "f32", 0) for name, shape in shapes.items()}
        self._factors = np.asarray(config.rope.freq_factors, np.float32)

    def rows(self, name: str) -> np.ndarray:
        assert name == "rope_freqs.weight"
        return self._factors[None]


@pytest.mark.parametrize("changes", [SHARED, SAME])
def test_keys_of_gguf_files(changes: dict[str, Any]) -> None:
    config = config_from_hf(FIELDS | changes)
    keys = config_to_gguf(config, name="x")
    found: Any = config_from_gguf(keys, _Source(config))  # type: ignore[arg-type]
    assert found.specs == config.specs
    assert replace(found, rope=config.rope) == config
    np.testing.assert_allclose(found.rope.freq_factors, config.rope.freq_factors)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"attention.head_count_kv": [1, 2, 2, 1, 2, 1]}, UnsupportedError, "head_count_kv = .* is not supported"),
        ({"attention.head_count_kv": [2, 1]}, FileError, "head_count_kv: expected a number, or 6 of them"),
        ({"attention.head_count_kv": [3, 3, 3, 1, 3, 1]}, FileError, "head_count_kv: expected a divisor"),
        ({"feed_forward_length": [96, 96, 96, 96, 100, 100]}, FileError, "feed_forward_length: expected the same"),
        ({"attention.shared_kv_layers": 3}, FileError, "shared_kv_layers: expected a layer of each kind"),
        ({"attention.sliding_window_pattern": [True] * 5}, FileError, "sliding_window_pattern: expected 6 booleans"),
    ],
)
def test_keys_that_contradict_each_other(changes: dict[str, Any], error: type[BitsmithError], words: str) -> None:
    config = config_from_hf(FIELDS | SHARED)
    keys = dict(config_to_gguf(config, name="x")) | {f"gemma4.{name}": value for name, value in changes.items()}
    with pytest.raises(error, match=words):
        config_from_gguf(keys, _Source(config))  # type: ignore[arg-type]


def test_a_missing_value_projection_in_some_layers() -> None:
    config = config_from_hf(FIELDS)
    source: Any = _Source(config)
    del source.tensors["blk.3.attn_v.weight"]
    with pytest.raises(UnsupportedError, match=r"blk.3.attn_v.weight is missing, but blk.5 has its own"):
        config_from_gguf(config_to_gguf(config, name="x"), source)


def test_what_llama_cpp_would_not_load_is_refused() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"] * 2
    config = config_from_hf(FIELDS | {"layer_types": kinds, "num_kv_shared_layers": 2})
    with pytest.raises(UnsupportedError, match=r"layer 4 uses the keys of layer \d"):
        config_to_gguf(config, name="x")
    with pytest.raises(UnsupportedError, match="no layer of the model has a window"):
        config_to_gguf(config_from_hf(FIELDS | {"layer_types": ["full_attention"] * 6}), name="x")
