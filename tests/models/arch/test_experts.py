"""Experts and their router, where a file and its configuration disagree, or promise what no model has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitsmith.errors import BitsmithError, FileError, UnsupportedError
from bitsmith.models.arch.hf_config import config_from_hf
from bitsmith.models.arch.names import names_of
from bitsmith.models.arch.tensors import check_tensors, expected_tensors
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.recipe.gguf import gguf_tensors

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 32,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
}
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
ROUTER = "model.layers.0.mlp.gate.weight"


def tensors(config: dict[str, Any] = CONFIG) -> dict[str, np.ndarray]:
    found = config_from_hf(config)
    names = names_of(found.family)
    made = {}
    for name, shape in expected_tensors(found).items():
        theirs = names.hf(name)
        if theirs is not None:
            made[theirs] = np.ones(shape, np.float32)
            continue
        stem = name.removesuffix(".weight")
        made |= {str(names.hf(f"{stem}.{e}.weight")): np.ones(shape[1:], np.float32) for e in range(shape[0])}
    return made


def folder(path: Path, content: dict[str, np.ndarray], **changes: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(content, path / "model.safetensors")
    return path


def refused(path: Path) -> str:
    with pytest.raises(BitsmithError) as caught:
        gguf_tensors(open_checkpoint(path))
    return str(caught.value)


def test_a_sound_folder(tmp_path: Path) -> None:
    wanted, shape = gguf_tensors(open_checkpoint(folder(tmp_path / "m", tensors())))
    assert shape.experts == 3
    stack = next(tensor.info for tensor in wanted if tensor.info.name == "blk.1.ffn_up_exps.weight")
    assert stack.shape == (3, 32, 32)


def test_a_missing_expert(tmp_path: Path) -> None:
    content = tensors()
    del content[EXPERT]
    assert EXPERT in refused(folder(tmp_path / "m", content))


def test_all_experts_missing(tmp_path: Path) -> None:
    content = {name: values for name, values in tensors().items() if ".experts." not in name}
    assert "model.layers.0.mlp.experts.0.gate_proj.weight" in refused(folder(tmp_path / "m", content))


@pytest.mark.parametrize(("name", "field"), [(EXPERT, "moe_intermediate_size"), (ROUTER, "num_experts")])
def test_another_shape(tmp_path: Path, name: str, field: str) -> None:
    content = tensors()
    content[name] = np.ones((content[name].shape[0] + 1, 32), np.float32)
    said = refused(folder(tmp_path / "m", content))
    assert name in said
    assert field in said


def test_one_expert_more_than_promised(tmp_path: Path) -> None:
    said = refused(folder(tmp_path / "m", tensors(), num_experts=2, num_experts_per_tok=2))
    assert ROUTER in said


@pytest.mark.parametrize(
    "changes", [{"num_experts": 0}, {"num_experts": 10**9}, {"num_experts_per_tok": 4}, {"mlp_only_layers": "all"}]
)
def test_impossible_numbers(changes: dict[str, Any]) -> None:
    with pytest.raises(FileError, match=next(iter(changes))):
        config_from_hf(CONFIG | changes)


def test_a_family_of_tomorrow_hears_what_works(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", tensors(), architectures=["Qwen9ForCausalLM"], model_type="qwen9")
    with pytest.raises(UnsupportedError, match=r"unknown architecture Qwen9ForCausalLM; .* quantizes any GGUF file"):
        open_checkpoint(path).config  # noqa: B018


def test_llama_cpp_has_experts_in_every_layer_or_none(tmp_path: Path) -> None:
    from bitsmith.models.arch.gguf_config import config_to_gguf

    config = config_from_hf(CONFIG | {"mlp_only_layers": [1]})
    assert "blk.1.ffn_gate.weight" in expected_tensors(config)
    with pytest.raises(UnsupportedError, match="only some layers of the model have experts"):
        config_to_gguf(config, name="x")


def test_gguf_files_need_every_stack(tmp_path: Path) -> None:
    from bitsmith.quant.tensor import TensorInfo

    config = config_from_hf(CONFIG)
    infos = {name: TensorInfo(name, shape, "f32", 0) for name, shape in expected_tensors(config).items()}
    check_tensors(config, infos)
    del infos["blk.0.ffn_down_exps.weight"]
    with pytest.raises(FileError, match=r"first blk\.0\.ffn_down_exps\.weight"):
        check_tensors(config, infos)


@pytest.mark.parametrize(
    ("changes", "name", "field"),
    [
        ({"num_attention_heads": 8}, "q_proj", "num_attention_heads x head_dim"),
        ({"num_key_value_heads": 1}, "k_proj", "num_key_value_heads x head_dim"),
        ({"head_dim": 16}, "q_norm", "head_dim"),
        ({"attention_bias": True}, "q_proj.bias", "attention_bias"),
        ({"num_hidden_layers": 3}, "model.layers.2.", "missing"),
        ({"num_hidden_layers": 1}, "model.layers.1.", "unexpected tensor"),
        ({"moe_intermediate_size": 16}, "gate_proj", "moe_intermediate_size"),
        ({"mlp_only_layers": [0]}, "model.layers.0.mlp.gate_proj.weight", "missing"),
    ],
)
def test_a_config_that_promises_another_network(tmp_path: Path, changes: dict[str, Any], name: str, field: str) -> None:
    said = refused(folder(tmp_path / "m", tensors(), **changes))
    assert name in said
    assert field in said


def test_norms_of_heads_that_a_family_has_and_the_file_lacks(tmp_path: Path) -> None:
    content = {name: values for name, values in tensors().items() if "k_norm" not in name}
    assert "model.layers.0.self_attn.k_norm.weight" in refused(folder(tmp_path / "m", content))


def test_norms_of_heads_that_a_family_does_not_have(tmp_path: Path) -> None:
    changes = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 3}
    config = {key: value for key, value in CONFIG.items() if key not in ("num_experts", "moe_intermediate_size")}
    content = tensors(config | changes)
    content |= {f"model.layers.{n}.self_attn.q_norm.weight": np.ones(8, np.float32) for n in range(2)}
    path = folder(tmp_path / "m", content)
    (path / "config.json").write_text(json.dumps(config | changes))
    assert "unexpected tensor model.layers.0.self_attn.q_norm.weight" in refused(path)


def test_a_gguf_family_of_tomorrow_hears_what_works() -> None:
    from bitsmith.models.arch.spec import spec_of_gguf

    with pytest.raises(UnsupportedError, match=r"architecture 'qwen9moe'.* quantized to GGUF types and"):
        spec_of_gguf("qwen9moe", "x.gguf", experts=True)
    with pytest.raises(UnsupportedError, match="'qwen3' with experts"):
        spec_of_gguf("qwen3", "x.gguf", experts=True)
