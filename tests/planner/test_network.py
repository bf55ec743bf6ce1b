"""Networks from configurations, headers and GGUF keys: every weight counted, every layer's cache of the right kind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import BitsmithError, FileError, UnsupportedError, UsageError
from bitsmith.models.arch.names import hf_name
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.planner.cache_memory import cache_bytes, check_type
from bitsmith.planner.hf_network import network_from_config, network_from_headers
from bitsmith.planner.model_spec import find_model
from bitsmith.planner.network import LayerCache, Network
from bitsmith.planner.shapes import known_shapes
from bitsmith.planner.weights import parse_target, stored
from bitsmith.quant.tensor import TensorInfo
from tests.gguf_files import write_gguf

KINDS = {  # kinds of layers, as their papers and configurations say
    "llama-2-7b": {"full": 32},
    "mistral-7b-v0.1": {"window": 32},
    "mistral-7b-v0.3": {"full": 32},
    "gemma-2-9b": {"window": 21, "full": 21},
    "gemma-3-27b": {"window": 52, "full": 10},
    "gpt-oss-20b": {"window": 12, "full": 12},
    "deepseek-v3": {"latent": 61},
    "qwen3-next-80b-a3b": {"recurrent": 36, "full": 12},
    "jamba-v0.1": {"recurrent": 28, "full": 4},
    "llama-4-scout": {"window": 36, "full": 12},
    "qwen2.5-7b": {"full": 28},
}


def network(name: str) -> Network:
    return find_model(name, scratch=Path()).network


@pytest.mark.parametrize("name", known_shapes())
def test_every_weight_of_a_known_shape_is_counted(name: str) -> None:
    shape = known_shapes()[name]
    assert network(name).parameters == shape.parameters


@pytest.mark.parametrize("name", [name for name, shape in known_shapes().items() if shape.active])
def test_active_weights_are_near_the_published_ones(name: str) -> None:
    shape = known_shapes()[name]
    assert shape.active is not None
    if name in ("qwen3-next-80b-a3b", "deepseek-v2-lite"):  # published without embeddings
        assert shape.active < network(name).active < 1.35 * shape.active
    else:
        assert network(name).active == pytest.approx(shape.active, rel=0.16)


@pytest.mark.parametrize(("name", "kinds"), KINDS.items())
def test_kinds_of_layers(name: str, kinds: dict[str, int]) -> None:
    assert Counter(cache.kind for cache in network(name).caches) == kinds


def test_caches_by_arithmetic() -> None:
    # 2 * layers * kv_heads * head_dim * context * 2 bytes
    assert cache_bytes(network("llama-2-7b"), 8192) == 2 * 32 * 32 * 128 * 8192 * 2  # 4.3 GB
    assert cache_bytes(network("llama-3-8b"), 8192) == 2 * 32 * 8 * 128 * 8192 * 2
    assert cache_bytes(network("falcon-7b"), 2048) == 2 * 32 * 1 * 64 * 2048 * 2
    assert cache_bytes(network("deepseek-v3"), 1000, batch=3) == 3 * 61 * (512 + 64) * 1000 * 2
    mistral = network("mistral-7b-v0.1")
    assert cache_bytes(mistral, 32768) == cache_bytes(mistral, 4096) == 2 * 32 * 8 * 128 * 4096 * 2
    assert cache_bytes(mistral, 32768, windows=False) == 8 * cache_bytes(mistral, 4096)
    gemma = network("gemma-3-1b")  # heads of 256, one for keys
    assert cache_bytes(gemma, 8192) == 2 * 256 * 2 * (22 * 512 + 4 * 8192)
    eight = network("llama-3-8b")
    f16 = cache_bytes(eight, 4096)
    for kind, bits in {"q8_0": 8.5, "q4_0": 4.5, "fp8": 8, "f32": 32}.items():
        assert cache_bytes(eight, 4096, type=kind) == f16 * bits / 16


def test_recurrent_layers_keep_the_same_whatever_the_context() -> None:
    qwen = network("qwen3-next-80b-a3b")
    state = 32 * 128 * 128 + (2 * 16 * 128 + 32 * 128) * 3
    assert cache_bytes(qwen, 1) == 36 * 4 * state + 12 * 2 * 2 * 256 * 2
    assert cache_bytes(qwen, 2) - cache_bytes(qwen, 1) == 12 * 2 * 2 * 256 * 2


def test_shared_layers_keep_nothing() -> None:
    config = {**known_shapes()["gemma-3-1b"].config, "num_kv_shared_layers": 10}
    found = network_from_config(config, name="x", origin="x")
    assert Counter(cache.kind for cache in found.caches)["shared"] == 10
    assert LayerCache().kind == "shared"


def test_types_of_caches() -> None:
    assert (check_type("FP16"), check_type("Q8_0")) == ("f16", "q8_0")
    with pytest.raises(UsageError, match="expected f32, f16"):
        check_type("q9")


def test_a_folder_gives_its_own_tensors() -> None:
    found = find_model("reference", scratch=Path())
    source = open_checkpoint("reference").source
    assert found.network.parameters == sum(info.parameters for info in source.tensors.values())
    names = {tensor.name for tensor in found.network.tensors}
    assert {"token_embd.weight", "output_norm.weight", "blk.0.ffn_down.weight"} <= names
    assert found.complete
    assert found.quantized is None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    targets = ("q4_k_m", "f16", "gptq/int4", "native/nf4")
    return {t: bitsmith.quantize("reference", to=t, out=folder / t.replace("/", "-")).out for t in targets}


@pytest.mark.parametrize("target", ["q4_k_m", "f16", "gptq/int4", "native/nf4"])
def test_files_that_bitsmith_wrote(made: dict[str, Path], target: str) -> None:
    found, whole = find_model(made[target], scratch=Path()), find_model("reference", scratch=Path())
    assert found.network.parameters == whole.network.parameters
    assert found.network.caches == whole.network.caches
    assert {t.name for t in found.network.tensors} == {t.name for t in whole.network.tensors}
    assert (found.quantized is None) == (target == "f16")


def test_parts_of_unknown_families_are_named() -> None:
    config = {**known_shapes()["qwen3-30b-a3b"].config, "model_type": "new_moe", "num_hidden_layers": 1}
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.self_attn.qkv_proj.weight": "blk.0.attn_qkv.weight",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.0.mlp.gate.weight": "blk.0.ffn_gate_inp.weight",
        "model.layers.0.mlp.experts.7.down_proj.weight": "blk.0.ffn_down_exps.weight",
        "model.layers.0.mlp.shared_expert.up_proj.weight": "blk.0.ffn_up_shexp.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "lm_head.weight": "output.weight",
        "model.vision_tower.layers.5.q_proj.weight": "vision.model.vision_tower.layers.5.q_proj.weight",
    }
    tensors = [TensorInfo(name, (64, 32), "bf16", 4096) for name in names]
    tensors.append(TensorInfo("model.layers.1.mlp.gate.weight", (64, 32), "bf16", 4096))  # drafts: left out
    found = network_from_headers(config, tensors, name="x", origin="x")
    assert {t.name for t in found.tensors} == set(names.values())
    experts = next(t for t in found.tensors if "exps" in t.name)
    assert found.used(experts) == 8 / 128
    assert experts.shape == (1, 64, 32)


def test_experts_of_a_layer_are_one_stack() -> None:
    """As the headers of the hub have them, against the built-in shape, whose stacks are GGUF's."""
    whole = network("qwen3-30b-a3b")
    config = {**known_shapes()["qwen3-30b-a3b"].config}
    parts = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
    tensors = []
    for tensor in whole.tensors:
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part not in parts:
            tensors.append(TensorInfo(hf_name(tensor.name) or tensor.name, tensor.shape, "bf16", 2 * tensor.parameters))
            continue
        layer = tensor.name.split(".")[1]
        tensors += [
            TensorInfo(f"model.layers.{layer}.mlp.experts.{n}.{parts[part]}.weight", tensor.shape[1:], "bf16", 0)
            for n in range(128)
        ]
    found = network_from_headers(config, tensors, name="x", origin="x")
    assert found.active == whole.active
    for format in ("q4_k_m", "q2_k", "gptq/int4", "native/nf4"):
        target = parse_target(format)
        assert stored(found, target).total == stored(whole, target).total


def test_gguf_keys_of_other_architectures(tmp_path: Path) -> None:
    from bitsmith.containers.gguf.metadata_values import ValueType, array, string, u32

    path = tmp_path / "x.gguf"
    keys: dict[str, Any] = {"general.architecture": string("gemma3")}
    numbers = {"block_count": 12, "embedding_length": 64, "feed_forward_length": 128, "context_length": 4096}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32}
    numbers |= {"attention.value_length": 32, "attention.sliding_window": 512}
    keys |= {f"gemma3.{name}": u32(value) for name, value in numbers.items()}
    write_gguf(path, keys, {"token_embd.weight": np.zeros((32, 64), np.float32)})
    found = find_model(path, scratch=Path()).network
    assert [cache.window for cache in found.caches] == [512, 512, 512, 512, 512, 0] * 2
    heads = array([2, 0, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0], ValueType.UINT32)
    keys |= {"gemma3.attention.head_count_kv": heads, "gemma3.ssm.inner_size": u32(64), "gemma3.ssm.state_size": u32(8)}
    write_gguf(path, keys, {"token_embd.weight": np.zeros((32, 64), np.float32)})
    kinds = Counter(cache.kind for cache in find_model(path, scratch=Path()).network.caches)
    assert kinds == {"recurrent": 9, "window": 2, "full": 1}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"num_hidden_layers": None}, r"num_hidden_layers \(or n_layer"),
    "text": ({"hidden_size": "wide"}, "hidden_size"),
    "heads": ({"num_attention_heads": 24}, "num_attention_heads"),
    "kv heads": ({"num_key_value_heads": 5}, "divisor of the 32"),
    "no vocabulary": ({"vocab_size": None}, "vocab_size .*is missing"),
    "no mlp": ({"intermediate_size": None}, "intermediate_size is missing"),
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "kinds": ({"layer_types": ["full_attention"]}, "layer_types"),
    "experts": ({"num_local_experts": 8}, "num_experts_per_tok"),
    "latent": ({"kv_lora_rank": 512}, "qk_rope_head_dim"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_configuration_names_the_field(case: str, tmp_path: Path) -> None:
    changes, match = BROKEN[case]
    config = {**known_shapes()["llama-3-8b"].config, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match=match) as raised:
        find_model(tmp_path, scratch=Path())
    assert "config.json" in str(raised.value)


def test_unknown_models(tmp_path: Path) -> None:
    config = {**known_shapes()["llama-3-8b"].config, "model_type": "quite_new"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="quite_new"):
        find_model(tmp_path, scratch=Path())
    for name, kind, match in (
        ("", UsageError, "empty"),
        ("lama-3-8b", UsageError, "llama-3-8b"),
        ("0.2M", UsageError, "a million"),
        ("./no/such.gguf", FileError, "no such file"),
    ):
        with pytest.raises(BitsmithError, match=match) as raised:
            find_model(name, scratch=Path())
        assert isinstance(raised.value, kind)


def caches_of(name: str, **changes: Any) -> Counter[str]:
    config = {**known_shapes()[name].config, **changes}
    found = network_from_config(config, name="x", origin="x", parameters=10**10)
    return Counter(cache.kind for cache in found.caches)


def test_families_without_a_row() -> None:
    new = {"model_type": "quite_new"}
    window = {"sliding_window": 4096}
    assert caches_of("llama-3-8b", **new, **window) == {"full": 32}  # nobody says that layers slide
    assert caches_of("llama-3-8b", **new, **window, sliding_window_pattern=4) == {"window": 24, "full": 8}
    assert caches_of("llama-3-8b", **new, **window, sliding_window_pattern="LLLG") == {"window": 24, "full": 8}
    assert caches_of("llama-3-8b", **new, hybrid_override_pattern="M-*-" * 8) == {
        "recurrent": 8,
        "shared": 16,
        "full": 8,
    }
    assert caches_of("mistral-7b-v0.1", use_sliding_window=False) == {"full": 32}
    kinds = ["conv", "full_attention"] * 16
    assert caches_of("llama-3-8b", **new, layer_types=kinds, conv_L_cache=3) == {"recurrent": 16, "full": 16}
    with pytest.raises(FileError, match="layer_types"):
        caches_of("llama-3-8b", layer_types=["telepathy"] * 32)


def test_sections_of_a_configuration() -> None:
    dbrx = {
        "model_type": "dbrx",
        "d_model": 6144,
        "n_layers": 40,
        "n_heads": 48,
        "vocab_size": 100352,
        "max_seq_len": 32768,
        "attn_config": {"kv_n_heads": 8},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    }
    found = network_from_config(dbrx, name="dbrx", origin="x", parameters=131_596_523_520)
    assert (found.kv_heads, found.experts, found.experts_used) == (8, 16, 4)
    assert cache_bytes(found, 8192) == 2 * 40 * 8 * 128 * 8192 * 2
    assert found.active == pytest.approx(36e9, rel=0.03)


def test_defaults_of_a_family(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    text["sliding_window"] = 1024
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    found = find_model(tmp_path, scratch=Path()).network
    assert found.parameters == known_shapes()["gemma-3-4b"].parameters


def test_positions_that_are_stretched() -> None:
    config = {**known_shapes()["qwen2.5-7b"].config, "max_position_embeddings": 32768}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert network_from_config({**config, "rope_scaling": yarn}, name="x", origin="x").context == 131072


@pytest.mark.parametrize("changes", [{"model_type": "bert"}, {"model_type": "new", "is_encoder_decoder": True}])
def test_what_does_not_generate(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="does not generate"):
        network_from_config({**known_shapes()["llama-3-8b"].config, **changes}, name="x", origin="x")


def test_no_tensor_is_lost_where_two_share_a_name() -> None:
    config = known_shapes()["gpt-oss-20b"].config
    shapes = {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": ((32, 5760, 90, 16), "u8"),
        "model.layers.0.mlp.experts.gate_up_proj_scales": ((32, 5760, 90), "u8"),
        "model.layers.0.mlp.experts.gate_up_proj_bias": ((32, 5760), "bf16"),
        "model.layers.0.self_attn.q_proj.weight": ((4096, 2880), "bf16"),
        "model.layers.0.self_attn.q_proj.weight_scale_inv": ((32, 23), "f32"),
        "vpm.encoder.layers.0.self_attn.q_proj.weight": ((100, 100), "bf16"),
        "llm.model.layers.0.self_attn.q_proj.weight": ((100, 100), "bf16"),
    }
    tensors = [TensorInfo(name, shape, layout, 1 << at) for at, (name, (shape, layout)) in enumerate(shapes.items())]
    found = network_from_headers(config, tensors, name="x", origin="x")
    assert len({tensor.name for tensor in found.tensors}) == len(tensors)
    assert sum(tensor.nbytes for tensor in found.tensors) == (1 << len(tensors)) - 1
    assert found.parameters == known_shapes()["gpt-oss-20b"].parameters  # codes do not tell: the family's table does


LIES: dict[str, dict[str, Any]] = {
    "block_count": {"llama.block_count": 100},
    "embedding_length": {"llama.embedding_length": 128},
    "head_count_kv": {"llama.attention.head_count_kv": 1},
    "expert_used_count": {"llama.expert_count": 8, "llama.expert_used_count": 80},
    "sliding_window_pattern": {
        "llama.attention.sliding_window": 9,
        "llama.attention.sliding_window_pattern": "x",
    },
}


@pytest.mark.parametrize("key", LIES)
def test_gguf_keys_that_contradict_the_tensors(key: str, made: dict[str, Path], tmp_path: Path) -> None:
    from bitsmith.containers.gguf.metadata_values import string, u32
    from bitsmith.containers.gguf.reader import GgufSource

    source = GgufSource(made["f16"])
    keys = {name: value for name, value in source.keys.items() if not name.startswith("tokenizer.")}
    keys |= {name: string(value) if isinstance(value, str) else u32(value) for name, value in LIES[key].items()}
    path = tmp_path / "lies.gguf"
    write_gguf(path, keys, {name: source.rows(name).reshape(info.shape) for name, info in source.tensors.items()})
    with pytest.raises(FileError, match=key):
        find_model(path, scratch=Path())
