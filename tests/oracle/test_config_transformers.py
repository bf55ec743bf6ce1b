"""Falsy and contradictory fields of config.json, against transformers: frequencies, and logits of whole folders."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from bitsmith.errors import BitsmithError
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.rope import rope_frequencies, rope_magnitude
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.runtime.load import load_language_model
from tests.tiny import CONFIG, make_folder, weights

SHAPE = {key: value for key, value in CONFIG.items() if key not in ("architectures", "model_type", "torch_dtype")}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MISSING = object()


def _matrix(**choices: list[Any]) -> list[dict[str, Any]]:
    """All combinations; a value of MISSING leaves the field out."""
    combinations = itertools.product(*choices.values())
    return [
        {key: value for key, value in zip(choices, each, strict=True) if value is not MISSING} for each in combinations
    ]


def _same_rotation(config: LlamaConfig, fields: dict[str, Any]) -> None:
    theirs = LlamaRotaryEmbedding(config)
    ours = config_from_hf({**CONFIG, **fields}).rope
    np.testing.assert_allclose(rope_frequencies(ours), theirs.inv_freq.numpy(), rtol=2e-6)
    assert rope_magnitude(ours) == pytest.approx(theirs.attention_scaling, rel=1e-7)


@pytest.mark.parametrize("scaling", _matrix(mscale=[MISSING, None, 0, 0.707], mscale_all_dim=[MISSING, None, 0, 1.3]))
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_yarn_magnitudes(scaling: dict[str, Any], spelling: str) -> None:
    fields = {spelling: YARN | scaling}
    _same_rotation(LlamaConfig(**SHAPE, **{spelling: dict(YARN | scaling)}), fields)


@pytest.mark.parametrize("scaling", _matrix(beta_fast=[MISSING, None, 0, 16], beta_slow=[MISSING, None, 0, 2.0]))
def test_yarn_betas(scaling: dict[str, Any]) -> None:
    _same_rotation(LlamaConfig(**SHAPE, rope_scaling=dict(YARN | scaling)), {"rope_scaling": YARN | scaling})


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
@pytest.mark.parametrize("inside", [MISSING, 32, 64])
@pytest.mark.parametrize("outside", [MISSING, 128])
def test_where_the_original_context_stands(kind: str, inside: Any, outside: Any) -> None:
    scaling = {"rope_type": kind, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {} if inside is MISSING else {"original_max_position_embeddings": inside}
    fields = {} if outside is MISSING else {"original_max_position_embeddings": outside}
    config = LlamaConfig(**SHAPE, rope_scaling=dict(scaling), **fields)
    _same_rotation(config, {"rope_scaling": scaling, **fields})


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_rope_scaling(nothing: Any) -> None:
    fields = {"rope_scaling": nothing, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}
    _same_rotation(LlamaConfig(**SHAPE, rope_scaling=nothing, rope_parameters=dict(fields["rope_parameters"])), fields)


@pytest.mark.parametrize("family", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize(
    "fields",
    _matrix(use_sliding_window=[MISSING, False, True], sliding_window=[MISSING, None, 16], max_window_layers=[0, 1, 9]),
)
def test_windows_of_qwen(family: Any, fields: dict[str, Any]) -> None:
    theirs = family(**SHAPE, **fields)
    name = "Qwen2ForCausalLM" if family is Qwen2Config else "Qwen3ForCausalLM"
    ours = config_from_hf({**CONFIG, "architectures": [name], **fields})
    slides = [kind == "sliding_attention" for kind in theirs.layer_types]
    expected = theirs.sliding_window if any(slides) else 0
    assert ours.window == expected
    layers = ours.window_layers or range(ours.layers if ours.window else 0)
    assert list(layers) == [layer for layer, sliding in enumerate(slides) if sliding]


FALSY: list[Any] = [MISSING, None, 0, 0.0, False, "", [], {}]
FIELDS: dict[str, str] = {  # of config.json: the attribute of ours, and of transformers' configuration
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "context",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied",
    "hidden_act": "activation",
    "hidden_size": "hidden",
    "intermediate_size": "intermediate",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "vocab_size": "vocab",
}
CLASSES = {"Llama": LlamaConfig, "Mistral": MistralConfig, "Qwen2": Qwen2Config, "Qwen3": Qwen3Config}


@pytest.mark.parametrize("value", FALSY, ids=lambda value: "missing" if value is MISSING else repr(value))
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("family", CLASSES)
def test_a_falsy_field_is_what_transformers_takes_or_an_error(family: str, field: str, value: Any) -> None:
    """Where transformers takes the value, ours is the same or the field is refused by name; never another number."""
    fields = {key: each for key, each in SHAPE.items() if key != field}
    fields |= {} if value is MISSING else {field: value}
    try:
        ours = config_from_hf(fields | {"architectures": [f"{family}ForCausalLM"]})
    except BitsmithError:
        return
    try:
        theirs = CLASSES[family](**fields)
    except (ValueError, TypeError, ZeroDivisionError, StrictDataclassError):
        # null may count as missing where transformers refuses it, and the integer 0 is the float 0.0
        assert value is None or (field == "rms_norm_eps" and ours.norm_eps == 0.0)
        return
    expected = getattr(theirs, field, None) or (SHAPE["hidden_size"] // SHAPE["num_attention_heads"])
    found = getattr(ours, FIELDS[field])
    assert found == (getattr(theirs, field) if field != "head_dim" else expected)


FOLDERS: dict[str, tuple[dict[str, Any], Any]] = {
    "another-head": ({"tie_word_embeddings": True}, lambda t: t),
    "same-head": (
        {"tie_word_embeddings": True},
        lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].copy()},
    ),
    "zero-epsilon": ({"rms_norm_eps": 0.0}, lambda t: t),
    "some-biases": (
        {"attention_bias": True},
        lambda t: {name: values for name, values in t.items() if not name.endswith("layers.1.self_attn.k_proj.bias")},
    ),
    "zero-bias": ({}, lambda t: t | {"model.layers.0.self_attn.o_proj.bias": np.zeros(64, np.float32)}),
    "mscale": ({"rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0}}, lambda t: t),
    "f64": ({}, lambda t: {name: values.astype(np.float64) for name, values in t.items()}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_of_folders(tmp_path: Path, name: str) -> None:
    changes, change = FOLDERS[name]
    tensors = {k: v.astype(np.float32) * 4 if v.ndim > 1 else v for k, v in weights({**CONFIG, **changes}).items()}
    tensors.setdefault("lm_head.weight", np.random.default_rng(5).standard_normal((4096, 64)).astype(np.float32))
    folder = make_folder(tmp_path / "m", tensors=change(tensors), **changes)
    tokens = np.random.default_rng(1).integers(0, 4096, (1, 100))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.as_tensor(tokens)).logits
    assert expected.std() > 0.3
    ours = load_language_model(open_checkpoint(folder), kernel="torch").decoder.forward(tokens)
    torch.testing.assert_close(torch.as_tensor(ours), expected, atol=2e-4, rtol=0)
