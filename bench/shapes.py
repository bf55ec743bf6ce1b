"""Models of real shapes with random weights, for measurements: Llama's network, and a mixture of experts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

SLAB_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Shape:
    """A Llama's shape, in weights."""

    layers: int
    hidden: int
    intermediate: int
    vocab: int
    heads: int
    kv_heads: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Row-major shapes by Hugging Face name."""
        kv = self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            shapes |= {
                f"{layer}.input_layernorm.weight": (self.hidden,),
                f"{layer}.self_attn.q_proj.weight": (self.hidden, self.hidden),
                f"{layer}.self_attn.k_proj.weight": (kv, self.hidden),
                f"{layer}.self_attn.v_proj.weight": (kv, self.hidden),
                f"{layer}.self_attn.o_proj.weight": (self.hidden, self.hidden),
                f"{layer}.post_attention_layernorm.weight": (self.hidden,),
                f"{layer}.mlp.gate_proj.weight": (self.intermediate, self.hidden),
                f"{layer}.mlp.up_proj.weight": (self.intermediate, self.hidden),
                f"{layer}.mlp.down_proj.weight": (self.hidden, self.intermediate),
            }
        return shapes | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocab, self.hidden)}

    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "dtype": "bfloat16",
        }


@dataclass(frozen=True)
class ExpertShape(Shape):
    """The shape of a Qwen3-MoE. `intermediate` is the width of one expert; heads are 64 wide."""

    experts: int
    used: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Row-major shapes by Hugging Face name."""
        shapes = {name: shape for name, shape in super().tensors().items() if ".mlp." not in name}
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            q, kv = 64 * self.heads, 64 * self.kv_heads
            shapes |= {
                f"{layer}.self_attn.q_proj.weight": (q, self.hidden),
                f"{layer}.self_attn.k_proj.weight": (kv, self.hidden),
                f"{layer}.self_attn.v_proj.weight": (kv, self.hidden),
                f"{layer}.self_attn.o_proj.weight": (self.hidden, q),
                f"{layer}.self_attn.q_norm.weight": (64,),
                f"{layer}.self_attn.k_norm.weight": (64,),
                f"{layer}.mlp.gate.weight": (self.experts, self.hidden),
            }
            for e in range(self.experts):
                expert = f"{layer}.mlp.experts.{e}"
                shapes |= {
                    f"{expert}.gate_proj.weight": (self.intermediate, self.hidden),
                    f"{expert}.up_proj.weight": (self.intermediate, self.hidden),
                    f"{expert}.down_proj.weight": (self.hidden, self.intermediate),
                }
        return shapes

    def config(self) -> dict[str, object]:
        """config.json."""
        return super().config() | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": 64,
            "num_experts": self.experts,
            "num_experts_per_tok": self.used,
            "moe_intermediate_size": self.intermediate,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }


def bfloat16_slabs(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights of a tensor in slabs, uint16 vectors of BF16 bits: ones for a vector, else normal with deviation 0.02."""
    left = int(np.prod(shape, dtype=np.int64))
    while left:
        count = min(left, SLAB_WEIGHTS)
        values = np.ones(count, np.float32)
        if len(shape) > 1:
            rng.standard_normal(out=values, dtype=np.float32)
            values *= np.float32(0.02)
        bits = values.view(np.uint32)
        bits += 0x7FFF + (bits >> 16 & 1)  # to nearest, ties to even
        yield (bits >> 16).astype("<u2")
        left -= count


def write_checkpoint(shape: Shape, folder: Path, seed: int) -> int:
    """A Hugging Face folder with random weights; returns the bytes of its weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2), encoding="utf-8")
    reference = files("bitsmith") / "reference"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((reference / name).read_bytes())
    header: dict[str, object] = {}
    offset = 0
    for name, dims in shape.tensors().items():
        end = offset + 2 * int(np.prod(dims, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dims in shape.tensors().values():
            for slab in bfloat16_slabs(dims, rng):
                file.write(slab.tobytes())
    return offset
