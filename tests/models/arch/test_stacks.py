"""Experts in stacks, as transformers 5 may save them and Qwen3-VL publishes them: the same as experts one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bitsmith
from bitsmith.errors import FileError
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.names import names_of
from bitsmith.models.arch.tensors import expected_tensors
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.recipe.folder import wanted_tensors
from bitsmith.recipe.gguf import gguf_tensors

HIDDEN, WIDTH, EXPERTS, LAYERS = 64, 32, 4, 2
COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "intermediate_size": WIDTH,
}
CONFIGS = {
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": EXPERTS, "num_experts_per_tok": 2},
    "mixtral": {"model_type": "mixtral", "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
}
CONFIGS["qwen3_moe"]["moe_intermediate_size"] = WIDTH


def apart_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random tensors of a folder with experts one by one."""
    found, random = config_from_hf(config), np.random.default_rng(3)
    names, made = names_of(found.family), {}
    for name, shape in expected_tensors(found).items():
        theirs = names.hf(name)
        stem = name.removesuffix(".weight")
        parts = {theirs: shape} if theirs else {names.hf(f"{stem}.{e}.weight"): shape[1:] for e in range(shape[0])}
        made |= {str(each): random.standard_normal(own).astype(np.float32) for each, own in parts.items()}
    return made


def stacked_of(config: dict[str, Any], content: dict[str, np.ndarray], *, transposed: bool) -> dict[str, np.ndarray]:
    """The same in stacks."""
    names, made = names_of(config_from_hf(config).family), dict(content)
    for layer in range(LAYERS):

        def matrix(part: str, e: int, layer: int = layer) -> np.ndarray:
            return made.pop(str(names.hf(f"blk.{layer}.ffn_{part}_exps.{e}.weight")))

        above = f"model.layers.{layer}.mlp."
        gate_up = np.stack([np.concatenate([matrix("gate", e), matrix("up", e)]) for e in range(EXPERTS)])
        down = np.stack([matrix("down", e) for e in range(EXPERTS)])
        turned = (lambda x: np.ascontiguousarray(x.swapaxes(1, 2))) if transposed else (lambda x: x)
        made[f"{above}experts.gate_up_proj"], made[f"{above}experts.down_proj"] = turned(gate_up), turned(down)
        made[f"{above}gate.weight"] = made.pop(str(names.hf(f"blk.{layer}.ffn_gate_inp.weight")))
    return made


def folder(path: Path, config: dict[str, Any], content: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(content, path / "model.safetensors")
    return path


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_stacks_are_the_same_experts(name: str, transposed: bool, tmp_path: Path) -> None:
    """hidden = 2 width here, so that the stack of gates and ups fits both ways, and the other one decides."""
    config = COMMON | CONFIGS[name]
    content = apart_of(config)
    apart = folder(tmp_path / "apart", config, content)
    stacked = folder(tmp_path / "stacked", config, stacked_of(config, content, transposed=transposed))
    originals, found = open_checkpoint(apart), open_checkpoint(stacked)
    for tensor, own in zip(gguf_tensors(originals)[0], gguf_tensors(found)[0], strict=True):
        assert own.info == tensor.info
        assert tensor.source is not None
        assert own.source is not None
        np.testing.assert_array_equal(
            found.reader.rows(own.source), originals.reader.rows(tensor.source), err_msg=own.info.name
        )
    quantized = bitsmith.quantize(stacked, to="native/int8", out=tmp_path / "q").out
    expected = bitsmith.quantize(apart, to="native/int8", out=tmp_path / "e").out
    ours, theirs = load_file(quantized / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_array_equal(ours[key], values, err_msg=key)


def test_other_floats_keep_the_stacks(tmp_path: Path) -> None:
    config = COMMON | CONFIGS["mixtral"]
    content = stacked_of(config, apart_of(config), transposed=False)
    made = bitsmith.convert(folder(tmp_path / "m", config, content), to="f16", out=tmp_path / "f16").out
    assert {key: values.shape for key, values in load_file(made / "model.safetensors").items()} == {
        key: values.shape for key, values in content.items()
    }


@pytest.mark.parametrize("damage", ["missing", "shape", "experts"])
def test_bad_stacks(damage: str, tmp_path: Path) -> None:
    config = COMMON | CONFIGS["qwen3_moe"]
    content = stacked_of(config, apart_of(config), transposed=False)
    name = "model.layers.1.mlp.experts.down_proj"
    if damage == "missing":
        del content[name]
    elif damage == "shape":
        content[name] = content[name][:, :-1].copy()
    else:
        content[name] = content[name][:-1].copy()
    with pytest.raises(FileError, match=r"model\.layers\.1\.mlp\.experts\.down_proj"):
        gguf_tensors(open_checkpoint(folder(tmp_path / "m", config, content)))
    with pytest.raises(FileError, match=r"model\.layers\.1\.mlp\.experts\.down_proj"):
        wanted_tensors(open_checkpoint(tmp_path / "m"))


def test_the_fields_of_a_stack_are_named(tmp_path: Path) -> None:
    config = COMMON | CONFIGS["qwen3_moe"]
    content = stacked_of(config, apart_of(config), transposed=False)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    content[name] = content[name][:-1].copy()
    with pytest.raises(FileError, match=r"\(num_experts, moe_intermediate_size, hidden_size\)"):
        gguf_tensors(open_checkpoint(folder(tmp_path / "m", config, content)))
