"""Known shapes: names are found however they are spelt, and the counts follow from the fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bitsmith.errors import UsageError
from bitsmith.planner import shapes
from bitsmith.planner.shapes import KnownShape, find_shape, known_shapes, near_names, nearest_by_count

ENTRIES = json.loads(Path(shapes.__file__).with_name("shapes.json").read_text(encoding="utf-8"))
PLAIN = [
    shape for shape in known_shapes().values() if shape.config["model_type"] in ("llama", "mistral", "qwen2", "qwen3")
]
SPELLINGS = {
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "hidden": ("hidden_size", "n_embd"),
    "vocab": ("vocab_size",),
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def dense_count(config: Mapping[str, Any]) -> int:
    """Weights of a Llama, Mistral or Qwen: embedding, layers, last norm, and a head unless tied."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    q, kv = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    attention = 2 * hidden * q + 2 * hidden * kv
    if config["model_type"] == "qwen2":
        attention += q + 2 * kv  # biases
    if config["model_type"] == "qwen3":
        attention += 2 * head_dim  # norms of q and k
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    ends = 1 if config["tie_word_embeddings"] else 2
    return int(ends * config["vocab_size"] * hidden + config["num_hidden_layers"] * layer + hidden)


@pytest.mark.parametrize("shape", PLAIN, ids=lambda shape: shape.name)
def test_counts_of_plain_models_follow_from_their_fields(shape: KnownShape) -> None:
    assert dense_count(shape.config) == shape.parameters


def test_the_published_counts() -> None:
    counts = {
        "llama-3-8b": 8_030_261_248,
        "llama-2-70b": 68_976_648_192,
        "qwen2.5-7b": 7_615_616_512,
        "qwen3-0.6b": 596_049_920,
        "mixtral-8x7b": 46_702_792_704,
        "deepseek-v3": 671_026_419_200,
        "gpt-oss-20b": 20_914_757_184,
    }
    assert {name: known_shapes()[name].parameters for name in counts} == counts


@pytest.mark.parametrize("shape", known_shapes().values(), ids=lambda shape: shape.name)
def test_every_entry_says_its_shape(shape: KnownShape) -> None:
    config = shape.config
    assert isinstance(config["model_type"], str)
    assert len(config["architectures"]) == 1
    for names in SPELLINGS.values():
        assert [type(config[name]) for name in names if name in config] == [int]
    assert shape.source
    assert shape.parameters > 1e8
    layers = next(config[name] for name in SPELLINGS["layers"] if name in config)
    assert len(config.get("layer_types", range(layers))) == layers
    assert (shape.active is not None) == any(name in config for name in EXPERTS)
    assert shape.active is None or 0 < shape.active < shape.parameters


def test_no_two_entries_share_a_spelling() -> None:
    spellings = [name for entry in ENTRIES for name in (entry, *ENTRIES[entry]["aliases"])]
    keys = [shapes._key(name) for name in spellings]
    assert sorted(key for key in set(keys) if keys.count(key) > 1) == []
    for name, entry in ENTRIES.items():
        assert all(find_shape(spelling) is known_shapes()[name] for spelling in (name, *entry["aliases"]))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("llama-3-8b", "llama-3-8b"),
        ("Llama 3 8B", "llama-3-8b"),
        ("llama3-8b", "llama-3-8b"),
        ("llama_3_8b", "llama-3-8b"),
        ("Meta-Llama-3-8B", "llama-3-8b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("llama3.1:8b", "llama-3.1-8b"),
        ("llama-8b", "llama-3.1-8b"),
        ("llama-70b", "llama-3.1-70b"),
        ("Llama-3.3-70B-Instruct", "llama-3.1-70b"),
        ("llama-7b", "llama-7b"),
        ("llama-13b", "llama-13b"),
        ("Llama-2-7b-chat-hf", "llama-2-7b"),
        ("Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("gemma-2-2b-it", "gemma-2-2b"),
        ("gemma3:27b", "gemma-3-27b"),
        ("Mistral-7B-Instruct-v0.1", "mistral-7b-v0.1"),
        ("mistral-7b", "mistral-7b-v0.3"),
        ("Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("Mistral-Nemo-Instruct-2407", "mistral-nemo-12b"),
        ("TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
        ("phi4", "phi-4"),
        ("gpt3", "gpt-3"),
        ("GPT-OSS:120B", "gpt-oss-120b"),
        ("DeepSeek R1", "deepseek-v3"),
        ("OLMo-2-1124-7B", "olmo-2-7b"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    shape = find_shape(spelling)
    assert shape is not None
    assert shape.name == name


@pytest.mark.parametrize("name", ["lama-3-8b", "llama-9b", "qwen2.5-8b", "gemma-2-7b"])
def test_unknown_names_have_near_ones(name: str) -> None:
    assert find_shape(name) is None
    near = near_names(name)
    assert 1 <= len(near) <= 4
    assert len(set(near)) == len(near)
    assert all(close in known_shapes() for close in near)


@pytest.mark.parametrize("name", ["", "/", "-", "meta", "instruct", "zzz-model", "llama", "model.gguf"])
def test_names_of_nothing(name: str) -> None:
    assert find_shape(name) is None


def test_the_nearest_name_comes_first() -> None:
    assert near_names("lama-3-8b")[0] == "llama-3-8b"
    assert near_names("zzz-model") == []


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        (70_000_000_000, "llama-3.1-70b"),
        (7_000_000_000, "llama-2-7b"),
        (8_000_000_000, "llama-3.1-8b"),
        (1_000_000_000_000, "llama-3.1-405b"),
        (9_200_000_000, "gemma-2-9b"),
        (1, "smollm2-135m"),
    ],
)
def test_nearest_by_count(parameters: int, name: str) -> None:
    assert nearest_by_count(parameters).name == name


def test_the_nearest_is_never_a_mixture() -> None:
    for shape in known_shapes().values():
        assert nearest_by_count(shape.parameters).active is None


def test_a_model_of_no_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one parameter, got 0"):
        nearest_by_count(0)


def test_shapes_are_loaded_once() -> None:
    assert known_shapes() is known_shapes()
