"""Configurations that contradict their tensors: what the tensors decide, what is ignored, what is refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import FileError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.quantization import quantize
from bitsmith.runtime.load import load_language_model
from bitsmith.runtime.weights import weight_reader
from tests.tiny import CONFIG, make_folder, weights

LAYER = "model.layers.1.self_attn."


def _tensors(**changes: Any) -> dict[str, np.ndarray]:
    return weights({**CONFIG, **changes})


def _with_head(equal: bool) -> dict[str, np.ndarray]:
    tensors = _tensors()
    if equal:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    return tensors


@pytest.mark.parametrize("equal", [True, False])
def test_a_head_beside_a_tied_embedding(tmp_path: Path, equal: bool) -> None:
    folder = make_folder(tmp_path / "m", tensors=_with_head(equal), tie_word_embeddings=True)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.tied is equal
    assert any("another lm_head.weight" in note for note in checkpoint.notes) is not equal
    result = quantize(folder, to="q8_0", out=tmp_path / "m.gguf")
    assert ("output.weight" in {tensor.info.name for tensor in result.plan.tensors}) is not equal
    assert any("another lm_head.weight" in warning for warning in result.warnings) is not equal


def test_the_kept_head_is_declared_in_folders(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", tensors=_with_head(False), tie_word_embeddings=True)
    quantize(folder, to="compressed/w8a16", out=tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").hf_config["tie_word_embeddings"] is False


def test_notes_are_logged_when_a_model_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "m", tensors=_with_head(False), tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING):
        load_language_model(open_checkpoint(folder), kernel="torch")
    assert "another lm_head.weight" in caplog.text


def test_a_missing_head_names_the_field(tmp_path: Path) -> None:
    tensors = _tensors()
    del tensors["lm_head.weight"]
    checkpoint = open_checkpoint(make_folder(tmp_path / "m", tensors=tensors))
    with pytest.raises(FileError, match=r"lm_head\.weight is missing: .*tie_word_embeddings"):
        weight_reader(checkpoint)


HARMLESS = {
    f"{LAYER}q_proj.bias": np.zeros(64, np.float16),
    f"{LAYER}rotary_emb.inv_freq": np.ones(8, np.float32),
    "model.rotary_emb.original_inv_freq": np.ones(8, np.float32),
    f"{LAYER}masked_bias": np.full((), -1e4, np.float32),
    f"{LAYER}k_proj.k_scale": np.ones(1, np.float32),
    "model.layers.0.mlp.gate_proj.bias": np.zeros(128, np.float32),
    "extra": np.zeros((0, 4), np.float32),
    "extra.matrix": np.zeros((3, 4), np.float32),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_extras_are_skipped(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "m", tensors=_tensors() | {name: HARMLESS[name]})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.ignored == {name}
    weight_reader(checkpoint)
    result = quantize(folder, to="q8_0", out=tmp_path / "m.gguf")
    assert any(name in warning for warning in result.warnings) is not HARMLESS[name].any()


@pytest.mark.parametrize("name", [f"{LAYER}q_proj.bias", "extra", "model.layers.0.mlp.up_proj.bias"])
def test_an_extra_that_is_not_zero_is_refused_by_name(tmp_path: Path, name: str) -> None:
    value = np.zeros(128, np.float32)
    value[100] = 1e-30
    folder = make_folder(tmp_path / "m", tensors=_tensors() | {name: value})
    with pytest.raises(FileError, match=f"{name}.*not zero"):
        quantize(folder, to="q8_0", out=tmp_path / "m.gguf")


def test_biases_of_some_layers_only(tmp_path: Path) -> None:
    tensors = _tensors(attention_bias=True)
    del tensors[f"{LAYER}q_proj.bias"]
    folder = make_folder(tmp_path / "m", tensors=tensors, attention_bias=True)
    config = open_checkpoint(folder).config
    assert (config.has_bias("attn_q", 0), config.has_bias("attn_q", 1), config.has_bias("attn_k", 1)) == (1, 0, 1)
    quantize(folder, to="f32", out=tmp_path / "m.gguf")
    again = open_checkpoint(tmp_path / "m.gguf").config
    assert again.biases == config.biases


def test_declared_biases_that_no_layer_has(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_folder(tmp_path / "m", tensors=_tensors(), attention_bias=True))
    with pytest.raises(FileError, match=r"q_proj\.bias is missing: .*\(attention_bias\)"):
        weight_reader(checkpoint)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vocab_size": 4000}, "vocab_size"),
        ({"intermediate_size": 256}, "intermediate_size"),
        ({"num_key_value_heads": 4}, "num_key_value_heads x head_dim"),
        ({"head_dim": 32}, "num_attention_heads x head_dim"),
        ({"hidden_size": 128, "head_dim": 16}, "hidden_size"),
    ],
)
def test_shapes_that_contradict_a_field_name_it(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    checkpoint = open_checkpoint(make_folder(tmp_path / "m", tensors=_tensors(), **changes))
    with pytest.raises(FileError, match=rf"has shape .* requires .*\(.*{field}"):
        weight_reader(checkpoint)


def test_what_llama_cpp_does_otherwise_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By quantize, by inspect of the file, and by eval, whose result cannot show it; not by every run."""
    family = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 32}
    folder = make_folder(tmp_path / "m", **family)
    result = quantize(folder, to="q8_0", out=tmp_path / "m.gguf")
    assert any("last 32 tokens" in warning for warning in result.warnings)
    assert any("last 32 tokens" in note for note in bitsmith.inspect(tmp_path / "m.gguf").notes)
    with caplog.at_level(logging.WARNING):
        load_language_model(open_checkpoint(tmp_path / "m.gguf"), kernel="torch")
        assert not caplog.text
        measured = bitsmith.evaluate(tmp_path / "m.gguf", context=64, max_windows=1)
    assert "this does not show in the result: the model attends only to the last 32 tokens" in " ".join(measured.notes)
