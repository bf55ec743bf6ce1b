"""Fields that the published configurations of families have beside the usual ones, and those that change a family."""

from __future__ import annotations

from typing import Any

import pytest

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.hf_config_writer import config_to_hf
from bitsmith.models.arch.hf_fields import check_fields
from tests.tiny import CONFIG

PUBLISHED: dict[str, dict[str, Any]] = {  # what real configurations of families say beside the usual fields
    "Qwen3MoeForCausalLM": {"use_qk_norm": True, "qkv_bias": False, "shared_expert_intermediate_size": 0},
    "HunYuanDenseV1ForCausalLM": {
        "use_cla": False,
        "cla_share_factor": 2,
        "use_qk_norm": True,
        "norm_type": "rms",
        "num_experts": 1,
        "attention_head_dim": 8,
    },
    "SmolLM3ForCausalLM": {
        "no_rope_layers": [1, 1],
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * 2,
    },
    "Gemma2ForCausalLM": {"hidden_activation": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
    "GptOssForCausalLM": {"swiglu_limit": 7.0, "initial_context_length": 4096, "experts_per_token": 2},
}
PARTS = ("full_attention", "sliding_attention")
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}


def published(name: str) -> dict[str, Any]:
    usual = {key: value for key, value in CONFIG.items() if key not in ("model_type", "hidden_act")}
    experts = MOE if "Moe" in name else {"num_local_experts": 4, "num_experts_per_tok": 2} if "Oss" in name else {}
    return {**usual, "architectures": [name], **experts, **PUBLISHED[name]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields_are_known(name: str) -> None:
    found = published(name)
    config = config_from_hf(found)
    assert check_fields(found, config.arch, "x") == ()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Qwen3MoeForCausalLM", {"shared_expert_intermediate_size": 64}),
        ("HunYuanDenseV1ForCausalLM", {"use_cla": True}),
        ("SmolLM3ForCausalLM", {"use_qk_norm": True}),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}),
        ("Gemma2ForCausalLM", {"hidden_activation": "relu"}),
        ("GptOssForCausalLM", {"swiglu_limit": 8.0}),
        ("Qwen3MoeForCausalLM", {"routed_scaling_factor": 2.5}),
    ],
)
def test_fields_that_change_a_family_are_refused(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(change))):
        config_from_hf(published(name) | change)


def test_a_model_type_of_another_family_is_noted() -> None:
    found = {**CONFIG, "architectures": ["MistralForCausalLM"], "sliding_window": 8}
    config = config_from_hf(found)
    assert config.window == 8
    (note,) = check_fields(found, config.arch, "x")
    assert "is of mistral models, but model_type is 'llama'" in note
    assert check_fields(found | {"model_type": "mistral"}, config.arch, "x") == ()


@pytest.mark.parametrize("part", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize("value", [3, [1], "x", True])
def test_rotations_by_layer_that_are_no_objects(part: str, value: object) -> None:
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    usual = {**CONFIG, "architectures": ["Gemma3ForCausalLM"], "rope_parameters": dict.fromkeys(PARTS, plain)}
    usual = {key: each for key, each in usual.items() if key not in ("model_type", "hidden_act", "rope_theta")}
    assert config_from_hf(usual).arch == "gemma3_text"
    with pytest.raises(FileError, match="rope_parameters: expected an object for each type of layer"):
        config_from_hf(usual | {"rope_parameters": {**usual["rope_parameters"], part: value}})


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({}, 0),
        ({"use_sliding_window": False, "sliding_window": 8}, 0),
        ({"use_sliding_window": True, "sliding_window": None}, 0),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, 8),
    ],
)
def test_all_layers_of_qwen3_moe_have_a_window_or_none(fields: dict[str, Any], window: int) -> None:
    """As transformers computes it; max_window_layers is for its dense models."""
    config = config_from_hf(published("Qwen3MoeForCausalLM") | fields)
    assert (config.window, config.window_layers) == (window, ())
    written = config_to_hf(config)
    again = config_from_hf(written)
    assert (again.window, again.window_layers) == (window, ())


@pytest.mark.parametrize(("window", "unrotated"), [(4096, (0, 1)), (None, ())])
def test_exaone_rotates_layers_without_a_window_only_if_the_model_has_none(
    window: int | None, unrotated: tuple[int, ...]
) -> None:
    found = {**CONFIG, "architectures": ["Exaone4ForCausalLM"], "sliding_window": window}
    assert config_from_hf(found | {"layer_types": ["full_attention"] * 2}).unrotated == unrotated


@pytest.mark.parametrize(
    ("name", "factor", "original", "beta"),
    [("Ministral3ForCausalLM", 16.0, 16384, 0.1), ("GptOssForCausalLM", 32.0, 4096, 0.0)],
)
def test_the_rotation_that_transformers_takes_where_a_configuration_has_none(
    name: str, factor: float, original: int, beta: float
) -> None:
    plain = {key: value for key, value in CONFIG.items() if key not in ("model_type", "rope_theta")}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if "Oss" in name else {}
    config = config_from_hf(plain | {"architectures": [name], **experts})
    assert (config.rope.scaling, config.rope.factor, config.rope.original_context) == ("yarn", factor, original)
    assert config.temperature == beta


def test_mistral_small_rotates_by_theta_alone() -> None:
    text = CONFIG | {"model_type": "mistral"}
    config = config_from_hf({"architectures": ["Mistral3ForConditionalGeneration"], "text_config": text})
    assert (config.rope.scaling, config.temperature) == ("none", 0.0)
    written = config_to_hf(config)
    assert written["architectures"] == ["MistralForCausalLM"]
    assert config_from_hf(written).rope == config.rope
