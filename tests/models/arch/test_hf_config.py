"""config.json in and out: defaults, both rope spellings, nonsense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.hf_config_writer import config_to_hf
from bitsmith.models.arch.rope import llama3_freq_factors

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def _family(name: str, **fields: Any) -> dict[str, Any]:
    return LLAMA | {"architectures": [f"{name}ForCausalLM"], "num_key_value_heads": 2} | fields


def test_defaults_of_llama() -> None:
    assert config_from_hf(LLAMA) == ModelConfig(
        arch="llama",
        layers=3,
        hidden=64,
        intermediate=96,
        heads=4,
        kv_heads=4,
        head_dim=16,
        vocab=100,
        context=2048,
        norm_eps=1e-6,
        rope=Rope(theta=10000.0, dim=16),
    )


# what the models' own config.json files say of their shape
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama-3.1-8B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "eos_token_id": [128001, 128008, 128009],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "vocab_size": 128256,
        },
        {"head_dim": 128, "kv_heads": 8, "tied": False, "window": 0, "context": 131072},
    ),
    "Mistral-7B-v0.1": (
        {
            "architectures": ["MistralForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        {"head_dim": 128, "kv_heads": 8, "window": 4096, "window_layers": (), "qkv_bias": False},
    ),
    "Mistral-Nemo": (
        {
            "architectures": ["MistralForCausalLM"],
            "head_dim": 128,
            "hidden_size": 5120,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "vocab_size": 131072,
        },
        {"head_dim": 128, "heads": 32, "window": 0},
    ),
    "Qwen2.5-0.5B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {"head_dim": 64, "tied": True, "qkv_bias": True, "output_bias": False, "window": 0},
    ),
    "Qwen3-0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {"head_dim": 128, "tied": True, "qkv_bias": False, "qk_norm": True, "rope": Rope(1e6, 128)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    values, expected = PUBLISHED[name]
    config = config_from_hf(values)
    assert {key: vars(config)[key] for key in expected} == expected
    assert config_from_hf(config_to_hf(config)) == config


def test_missing_key_value_heads_take_the_family_default() -> None:
    many = LLAMA | {"num_attention_heads": 32, "architectures": ["MistralForCausalLM"]}
    assert config_from_hf(many).kv_heads == 8
    assert config_from_hf(many | {"num_key_value_heads": None}).kv_heads == 32
    assert config_from_hf(many | {"architectures": ["Qwen2ForCausalLM"]}).kv_heads == 32


def test_families_differ() -> None:
    qwen2, qwen3 = config_from_hf(_family("Qwen2")), config_from_hf(_family("Qwen3"))
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm, qwen2.head_dim) == (True, False, False, 16)
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm, qwen3.head_dim) == (False, False, True, 128)
    assert config_from_hf(_family("Mistral")).window == 4096
    assert config_from_hf(_family("Mistral", sliding_window=None)).window == 0


def test_family_by_model_type_where_no_class_is_named() -> None:
    unnamed = {key: value for key, value in LLAMA.items() if key != "architectures"}
    assert config_from_hf(unnamed | {"model_type": "qwen3", "num_key_value_heads": 2}).arch == "qwen3"
    with pytest.raises(UnsupportedError, match="'gpt2'"):
        config_from_hf(unnamed | {"model_type": "gpt2"})


@pytest.mark.parametrize(
    ("fields", "window", "layers"),
    [
        ({}, 0, ()),
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, 0, ()),
        ({"use_sliding_window": True, "sliding_window": 8}, 0, ()),  # 28 full layers by default
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, 8, (1, 2)),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, 8, (0, 1, 2)),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            8,
            (0, 2),
        ),
    ],
)
def test_windows_of_qwen(fields: dict[str, Any], window: int, layers: tuple[int, ...]) -> None:
    config = config_from_hf(_family("Qwen3", **fields))
    assert (config.window, config.window_layers) == (window, layers)


def test_both_rope_spellings() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    old = config_from_hf(LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling | {"type": "llama3"}})
    new = config_from_hf(LLAMA | {"rope_parameters": scaling | {"rope_type": "llama3", "rope_theta": 5e5}})
    assert old == new
    assert old.rope == Rope(5e5, 16, scaling="llama3", factor=8.0, original_context=512)


def test_yarn() -> None:
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 512}
    config = config_from_hf(LLAMA | {"rope_scaling": scaling | {"mscale": 1.0, "mscale_all_dim": 1.0}})
    assert config.rope.factor == 4.0  # 2048 / 512
    assert config.rope.attention_factor == 1.0
    with pytest.raises(UnsupportedError, match="truncate false"):
        config_from_hf(LLAMA | {"rope_scaling": scaling | {"truncate": False}})


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "mrope"])
def test_unknown_rope_scaling(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{kind}'.*llama3"):
        config_from_hf(LLAMA | {"rope_scaling": {"rope_type": kind, "factor": 2.0}})


@pytest.mark.parametrize(
    "field", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_missing_field(field: str) -> None:
    with pytest.raises(FileError, match=rf"^model/config\.json: {field} is missing"):
        config_from_hf({key: value for key, value in LLAMA.items() if key != field}, origin="model/config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 0),
        ("num_attention_heads", 5),
        ("num_attention_heads", True),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", -1),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "3"),
        ("hidden_size", 64.5),
        ("hidden_size", [64]),
        ("head_dim", 15),
        ("vocab_size", 2**40),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", 10**400),
        ("rms_norm_eps", float("inf")),
        ("rope_theta", -1.0),
        ("rope_theta", 1.0),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"rope_type": "linear", "factor": 0}),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
        ("rope_scaling", {"rope_type": 7}),
        ("tie_word_embeddings", "yes"),
        ("architectures", "LlamaForCausalLM"),
        ("hidden_act", 3),
    ],
)
def test_nonsense(field: str, value: object) -> None:
    with pytest.raises(FileError, match=r"config\.json"):
        config_from_hf(LLAMA | {field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": ["GPT2LMHeadModel"]},
        {"hidden_act": "gelu"},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    ],
)
def test_unsupported(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        config_from_hf(LLAMA | fields)


def test_writing_llama3_from_frequency_factors() -> None:
    """A GGUF file keeps only the factors; the published parameters are found again, others are refused."""
    rope = Rope(5e5, 128, scaling="llama3", factor=32.0, original_context=8192)
    factors = tuple(float(value) for value in llama3_freq_factors(rope))
    config = replace(config_from_hf(LLAMA), rope=Rope(5e5, 128, interleaved=True, freq_factors=factors))
    scaling = config_to_hf(config)["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", 32.0)
    assert scaling["original_max_position_embeddings"] == 8192
    bent = replace(config, rope=replace(config.rope, freq_factors=(2.0, *factors[1:])))
    with pytest.raises(UnsupportedError, match="rope_freqs"):
        config_to_hf(bent)


def test_writing_a_llama_with_a_window_makes_a_mistral() -> None:
    written = config_to_hf(replace(config_from_hf(LLAMA), window=16))
    assert written["architectures"] == ["MistralForCausalLM"]
    assert written["sliding_window"] == 16


def test_writing_refuses_biases_transformers_has_no_class_for() -> None:
    with pytest.raises(UnsupportedError, match="biases"):
        config_to_hf(replace(config_from_hf(LLAMA), qkv_bias=True))


def test_writing_refuses_a_magnitude_without_yarn() -> None:
    config = config_from_hf(LLAMA)
    with pytest.raises(UnsupportedError, match="multiplies cos and sin by"):
        config_to_hf(replace(config, rope=replace(config.rope, attention_factor=1.5)))
