"""The decoder against llama.cpp: F32 files written from our configurations, logits compared in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitsmith.containers.gguf.metadata_values import string
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.gguf_config import config_from_gguf, config_to_gguf, rope_freqs
from bitsmith.models.arch.hf_config_writer import config_to_hf
from bitsmith.models.arch.names import hf_name, is_permuted, permute_rows
from bitsmith.models.arch.spec import ARCHITECTURES
from bitsmith.models.arch.tensors import ROPE_FREQS, check_tensors, expected_tensors
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import load_weights
from tests.gguf_files import write_gguf
from tests.oracle.llama import load
from tests.runtime.small import decoder_of, random_tensors

SMALL = ModelConfig(
    arch="llama",
    layers=2,
    hidden=64,
    intermediate=96,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=96,
    context=256,
    norm_eps=1e-5,
    rope=Rope(dim=16),
)
QWEN = replace(SMALL, arch="qwen2", qkv_bias=True)
YARN = Rope(dim=16, scaling="yarn", factor=4.0, original_context=64)
CONFIGS: dict[str, ModelConfig] = {
    "llama": SMALL,
    "llama-tied": replace(SMALL, tied=True),
    "llama-biases": replace(SMALL, qkv_bias=True, output_bias=True, mlp_bias=True),
    "llama-head-dim": replace(SMALL, head_dim=24, rope=Rope(dim=24, theta=500.0)),
    "llama-linear": replace(SMALL, rope=Rope(dim=16, scaling="linear", factor=3.0)),
    "llama-yarn": replace(SMALL, rope=YARN),
    "llama-yarn-attention-factor": replace(SMALL, rope=replace(YARN, attention_factor=0.8)),
    "llama-some-biases": replace(
        SMALL, qkv_bias=True, mlp_bias=True, biases=frozenset({"blk.0.attn_q", "blk.1.attn_v", "blk.0.ffn_down"})
    ),
    "llama-yarn-betas": replace(SMALL, rope=replace(YARN, beta_fast=16.0, beta_slow=2.0)),
    "llama-yarn-betas-factor": replace(SMALL, rope=replace(YARN, beta_fast=8.0, attention_factor=0.7)),
    "llama-llama3": replace(SMALL, rope=Rope(theta=500.0, dim=16, scaling="llama3", factor=8.0, original_context=1024)),
    "qwen2-tied": replace(QWEN, tied=True),
    "qwen2-yarn": replace(QWEN, rope=YARN),
    "qwen3": replace(SMALL, arch="qwen3", qk_norm=True, head_dim=32, rope=Rope(dim=32, theta=1e6)),
}


def _write(path: Path, config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """An F32 GGUF file of weights whose rows are in Hugging Face's order."""
    stored = {}
    for name, values in tensors.items():
        if is_permuted(name) and ARCHITECTURES[config.arch].permuted:
            values = permute_rows(values, config.heads if "attn_q" in name else config.kv_heads)
        stored[name] = values
    factors = rope_freqs(config)
    if factors is not None:
        stored[ROPE_FREQS] = factors
    keys = config_to_gguf(config, name="test") | {"tokenizer.ggml.model": string("no_vocab")}
    write_gguf(path, keys, stored)


def _decoder(source: GgufSource, config: ModelConfig) -> Decoder:
    ops = TorchOps()
    return Decoder(config, load_weights(config, lambda name: Weight.of(source, name), DenseKernel(), ops), ops)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _mean_kld(logits: np.ndarray, reference: np.ndarray) -> float:
    theirs, ours = _log_softmax(reference), _log_softmax(logits)
    return float((np.exp(theirs) * (theirs - ours)).sum(-1).mean())


@pytest.mark.parametrize("name", CONFIGS)
def test_small_models(name: str, tmp_path: Path) -> None:
    """llama.cpp, our decoder on the file and our decoder on the original weights agree."""
    config = CONFIGS[name]
    tensors = random_tensors(config)
    path = tmp_path / "model.gguf"
    _write(path, config, tensors)
    tokens = np.random.default_rng(2).integers(0, config.vocab, 60)
    llama = load(path)
    expected = llama.logits(tokens)
    llama.close()
    assert expected.std() > 0.5

    original = decoder_of(config, tensors).forward(tokens[None])[0].numpy()
    np.testing.assert_allclose(original, expected, atol=2e-4)
    with GgufSource(path) as source:
        reread = config_from_gguf(source.metadata, source)
        check_tensors(reread, source.tensors)
        ours = _decoder(source, reread).forward(tokens[None])[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_survives_the_file(name: str, tmp_path: Path) -> None:
    """GGUF keys and rope_freqs.weight carry the whole configuration, up to how the rope is spelled."""
    config = CONFIGS[name]
    _write(tmp_path / "model.gguf", config, random_tensors(config))
    with GgufSource(tmp_path / "model.gguf") as source:
        reread = config_from_gguf(source.metadata, source)
    rope = replace(reread.rope, interleaved=False)
    assert reread.rope.interleaved == ARCHITECTURES[config.arch].permuted
    if config.rope.beta_fast != 32.0:  # written as divisors, see the logits above
        assert rope.freq_factors
        rope = config.rope
    if config.rope.scaling == "llama3":
        rope = config.rope
        assert config_to_hf(reread)["rope_scaling"] == config_to_hf(config)["rope_scaling"]
    attention = rope.attention_factor
    if attention is not None:
        rope = replace(rope, attention_factor=round(attention, 6))
    assert replace(reread, rope=rope, norm_eps=round(reread.norm_eps, 12)) == config


def test_reference_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("reference")
    config, source = checkpoint.config, checkpoint.source
    tensors = {}
    for name, shape in expected_tensors(config).items():
        tensors[name] = source.rows(str(hf_name(name))).reshape(shape)
    path = tmp_path / "reference.gguf"
    _write(path, config, tensors)
    tokens = np.random.default_rng(3).integers(2, config.vocab, 256)
    llama = load(path)
    expected = llama.logits(tokens)
    llama.close()
    with GgufSource(path) as opened:
        ours = _decoder(opened, config_from_gguf(opened.metadata, opened)).forward(tokens[None])[0].numpy()
    kld = _mean_kld(ours, expected)
    assert abs(kld) < 1e-6
    assert (ours.argmax(-1) == expected.argmax(-1)).mean() > 0.99
