"""Finds from a tensor's GGUF name which part of the model it is, and whether it is never quantized."""

from __future__ import annotations

import re
from enum import Enum

from bitsmith.quant.tensor import TensorInfo


class Category(Enum):
    """The parts of a model that llama-quantize's mixes distinguish. The value is the name in reasons."""

    EMBEDDING = "token_embd"
    OUTPUT = "output"
    ATTN_V = "attn_v"  # also the fused attn_qkv and attn_kv_b
    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_OUTPUT = "attn_output"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
    FFN_DOWN = "ffn_down"
    OTHER = "other"


_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

# the first part found in the name decides
_PARTS = (
    ("attn_qkv.weight", Category.ATTN_V),
    ("attn_kv_b.weight", Category.ATTN_V),
    ("attn_v.weight", Category.ATTN_V),
    ("attn_k.weight", Category.ATTN_K),
    ("attn_q.weight", Category.ATTN_Q),
    ("attn_output.weight", Category.ATTN_OUTPUT),
    ("ffn_up", Category.FFN_UP),
    ("ffn_gate", Category.FFN_GATE),
    ("ffn_down", Category.FFN_DOWN),
)

_KEPT_NAMES = ("position_embd.weight", "token_types.weight")

_KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",  # expert routers
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",  # RWKV's small matrices
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",  # parts of vision and audio encoders
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)

_KEPT_PARTS_BY_ARCH = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}

_LAYER = re.compile(r"blk\.(\d+)")


def layer_of(name: str) -> int:
    """Number of the block that a GGUF tensor belongs to; -1 for a tensor outside blocks."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def category_of(name: str) -> Category:
    """The part of the model that the tensor with this GGUF name is."""
    if name == "output.weight":
        return Category.OUTPUT
    if name in _EMBEDDINGS:
        return Category.EMBEDDING
    return next((category for part, category in _PARTS if part in name), Category.OTHER)


def why_kept(tensor: TensorInfo, arch: str) -> str | None:
    """Why llama-quantize (build 11434, src/llama-quant.cpp) never quantizes this tensor; None if it does."""
    name = tensor.name
    if tensor.rows == 1:
        return "one-dimensional"
    if not name.endswith("weight"):
        return "not a weight matrix"
    if name in _KEPT_NAMES:
        return f"{name} is never quantized"
    part = next((p for p in (*_KEPT_PARTS, *_KEPT_PARTS_BY_ARCH.get(arch, ())) if p in name), None)
    return f"{part} is never quantized" if part else None
