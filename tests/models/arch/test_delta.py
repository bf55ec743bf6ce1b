"""Gated delta nets: the orders of their rows in files, layers that draft tokens, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import bitsmith
from bitsmith.containers.gguf.metadata_values import Value, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.errors import BitsmithError, FileError, UnsupportedError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.gguf_config import config_to_gguf
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.tensors import expected_tensors, file_tensors
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.planner.hf_network import network_from_config, network_from_headers
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.gguf import gguf_tensors
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import load_weights, weight_reader
from tests.gguf_files import write_gguf

DENSE: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SPARSE = DENSE | {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 16,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "shared_expert_intermediate_size": 8,
}
DRAFTS = "mtp.layers.0.mlp.up_proj.weight"


def folder(path: Path, config: dict[str, Any], *, drafts: bool = False) -> Path:
    """A folder with random weights. Rows and columns all differ, so that a lost order shows."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    rng, found = np.random.default_rng(0), config_from_hf(config)
    names = file_tensors(found, {}, "hf")
    shapes = dict(names.wanted)
    if found.experts is not None:  # one by one
        for layer in range(found.layers):
            for e in range(found.experts.count):
                stem = f"model.layers.{layer}.mlp.experts.{e}"
                shapes |= {f"{stem}.{each}_proj.weight": (16, 32) for each in ("gate", "up")}
                shapes[f"{stem}.down_proj.weight"] = (32, 16)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if drafts:
        tensors[DRAFTS] = rng.standard_normal((48, 32)).astype(np.float32)
    save_file(tensors, path / "model.safetensors")
    return path


def values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    return checkpoint.reader.rows(checkpoint.place(name))


def config_of(checkpoint: Checkpoint) -> ModelConfig:
    found = checkpoint.config
    assert found.delta is not None
    return found


def test_value_heads_are_tiled_for_gguf(tmp_path: Path) -> None:
    """llama.cpp's order: the first value head of each key head, then the second of each. Rows and columns alike."""
    file = open_checkpoint(folder(tmp_path / "dense", DENSE))
    ours = file.laid_out("gguf")
    assert config_of(ours).delta != config_of(file).delta
    heads = [0, 3, 1, 4, 2, 5]
    for name, before, width in (("attn_gate", 0, 8), ("attn_qkv", 32, 8), ("ssm_beta", 0, 1), ("ssm_conv1d", 32, 8)):
        stored, tiled = (values(each, f"blk.1.{name}.weight") for each in (file, ours))
        np.testing.assert_array_equal(tiled[:before], stored[:before])
        rows = stored[before:].reshape(6, width, -1)[heads].reshape(stored[before:].shape)
        np.testing.assert_array_equal(tiled[before:], rows, err_msg=name)
    stored, tiled = (values(each, "blk.1.ssm_out.weight") for each in (file, ours))
    np.testing.assert_array_equal(tiled, stored.reshape(32, 6, 8)[:, heads].reshape(32, 48))
    logs = file.source.rows("model.layers.1.linear_attn.A_log")[0]
    np.testing.assert_allclose(values(ours, "blk.1.ssm_a")[0], -np.exp(logs)[heads], rtol=1e-6)
    np.testing.assert_allclose(values(file, "blk.1.ssm_a")[0], -np.exp(logs), rtol=1e-6)


def test_fused_matrices_are_taken_apart(tmp_path: Path) -> None:
    """Rows of a key head: q, k, its three heads of v, its three of z."""
    file = open_checkpoint(folder(tmp_path / "sparse", SPARSE))
    ours = file.laid_out("gguf")
    fused = file.source.rows("model.layers.0.linear_attn.in_proj_qkvz.weight").reshape(2, 64, 32)
    parts = [fused[:, :8], fused[:, 8:16], fused[:, 16:40]]
    expected = np.concatenate([part.reshape(-1, 32) for part in parts])
    np.testing.assert_array_equal(values(ours, "blk.0.attn_qkv.weight"), expected)
    np.testing.assert_array_equal(values(ours, "blk.0.attn_gate.weight"), fused[:, 40:].reshape(-1, 32))
    same = ("ssm_ba.weight", "ssm_out.weight", "ssm_conv1d.weight")
    for name in same:
        np.testing.assert_array_equal(values(ours, f"blk.0.{name}"), values(file, f"blk.0.{name}"))


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_both_orders_compute_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    file = open_checkpoint(folder(tmp_path / "model", config))
    tokens = np.random.default_rng(1).integers(0, 64, (1, 30))
    here, there = (decoder(each).forward(tokens).numpy() for each in (file, file.laid_out("gguf")))
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-3 * here.std())


def decoder(checkpoint: Checkpoint) -> Decoder:
    weights = load_weights(checkpoint.config, weight_reader(checkpoint), DenseKernel(), TorchOps())
    return Decoder(checkpoint.config, weights, TorchOps())


def test_layers_that_draft_tokens_are_left_out_with_a_word(tmp_path: Path) -> None:
    path = folder(tmp_path / "dense", DENSE | {"mtp_num_hidden_layers": 1}, drafts=True)
    checkpoint = open_checkpoint(path)
    assert any(f"1 tensors ({DRAFTS}, ...) draft several tokens" in note for note in checkpoint.notes)
    kept = bitsmith.quantize(path, to="native/int8-channel", out=tmp_path / "int8").out
    assert open_checkpoint(kept).source.tensors[DRAFTS].layout == "f32"
    assert open_checkpoint(kept).source.tensors["model.layers.0.mlp.up_proj.weight"].layout != "f32"


def test_gguf_files_with_layers_that_draft_tokens_are_read(tmp_path: Path) -> None:
    """llama.cpp's converter counts them as layers behind the others."""
    file = open_checkpoint(folder(tmp_path / "dense", DENSE)).laid_out("gguf")
    config = config_of(file)
    keys: dict[str, Value] = dict(config_to_gguf(config, name="drafting"))
    keys["qwen35.block_count"], keys["qwen35.nextn_predict_layers"] = u32(5), u32(1)
    tensors = {name: values(file, name).reshape(shape) for name, shape in expected_tensors(config).items()}
    tensors["blk.4.nextn.eh_proj.weight"] = np.ones((32, 64), np.float32)
    (path,) = write_gguf(tmp_path / "m.gguf", keys, tensors)
    found = open_checkpoint(path)
    assert config_of(found).layers == 4
    assert any("draft several tokens" in note for note in found.notes)
    np.testing.assert_array_equal(values(found, "blk.0.attn_qkv.weight"), values(file, "blk.0.attn_qkv.weight"))
    copy = bitsmith.quantize(path, to="q8_0", out=tmp_path / "copy.gguf").out
    with GgufSource(copy) as source:
        assert "blk.4.nextn.eh_proj.weight" in source.tensors


REFUSED: dict[str, tuple[dict[str, Any], type[BitsmithError], str]] = {
    "no gate": ({"attn_output_gate": False}, UnsupportedError, "attn_output_gate false"),
    "heads": ({"linear_num_value_heads": 5}, FileError, "a multiple of linear_num_key_heads"),
    "layers": ({"layer_types": ["linear_attention"]}, FileError, "layer_types: expected 4 entries"),
    "kinds": ({"layer_types": ["mamba"] * 4}, FileError, "each one of full_attention, linear_attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name: str) -> None:
    change, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        config_from_hf(DENSE | change)


def test_heads_of_two_widths_fit_no_gguf_file() -> None:
    with pytest.raises(UnsupportedError, match="only if they are equal"):
        config_to_gguf(config_from_hf(DENSE | {"linear_value_head_dim": 16}), name="m")


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_plans_count_what_gguf_files_hold(config: dict[str, Any], tmp_path: Path) -> None:
    file = open_checkpoint(folder(tmp_path / "model", config, drafts=True))
    wanted = {name: each.shape for name, each in _gguf_infos(file).items()}
    planned = network_from_config(config, name="m", origin="config.json")
    assert {tensor.name: tensor.shape for tensor in planned.tensors} == wanted
    net = config_of(file).delta
    assert net is not None
    assert [cache.state for cache in planned.caches] == [net.state, net.state, net.state, 0]
    assert net.state == 6 * 8 * 8 + 3 * (2 * 16 + 48)
    seen = network_from_headers(config, file.source.tensors.values(), name="m", origin="config.json")
    assert seen.parameters == planned.parameters


def _gguf_infos(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    return {tensor.info.name: tensor.info for tensor in gguf_tensors(checkpoint.laid_out("gguf"))[0]}
