"""Converts tensor names, and the row order of q and k, between Hugging Face and GGUF."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

Naming = Literal["hf", "gguf"]  # whose tensor names a file uses: Hugging Face's or GGUF's

_GLOBAL = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GLOBAL_BACK = {gguf: hf for hf, gguf in _GLOBAL.items()}
_LAYER_BACK = {gguf: hf for hf, gguf in _LAYER.items()}
_HF_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,4})\.(.+)\.(weight|bias)")
_GGUF_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(.+)\.(weight|bias)")
_BUFFER = re.compile(r"(.+\.)?(rotary_emb\.(original_)?(inv_freq|cos_cached|sin_cached)|masked_bias)")


def skipped(hf_name: str, *, tied: bool) -> bool:
    """Whether a tensor of a Hugging Face file is not needed.

    Old checkpoints store buffers of rotary embeddings and masks. With tied embeddings, some files store the embedding
    twice.
    """
    return _BUFFER.fullmatch(hf_name) is not None or (tied and hf_name == "lm_head.weight")


def gguf_name(hf_name: str) -> str | None:
    """The GGUF name of a Hugging Face tensor; None if the decoder has no such tensor (see `skipped`)."""
    match = _HF_LAYER.fullmatch(hf_name)
    if match:
        layer, part, kind = match.groups()
        return f"blk.{layer}.{_LAYER[part]}.{kind}" if part in _LAYER else None
    stem, _, kind = hf_name.rpartition(".")
    return f"{_GLOBAL[stem]}.{kind}" if stem in _GLOBAL and kind in ("weight", "bias") else None


def hf_name(gguf_name: str) -> str | None:
    """The Hugging Face name of a GGUF tensor; None if there is none (rope_freqs.weight)."""
    match = _GGUF_LAYER.fullmatch(gguf_name)
    if match:
        layer, part, kind = match.groups()
        return f"model.layers.{layer}.{_LAYER_BACK[part]}.{kind}" if part in _LAYER_BACK else None
    stem, _, kind = gguf_name.rpartition(".")
    return f"{_GLOBAL_BACK[stem]}.{kind}" if stem in _GLOBAL_BACK and kind in ("weight", "bias") else None


def is_permuted(gguf_name: str) -> bool:
    """Whether the tensor is a weight or bias of q or k. Families with `ArchSpec.permuted` reorder its rows."""
    match = _GGUF_LAYER.fullmatch(gguf_name)
    return match is not None and match.group(2) in ("attn_q", "attn_k")


def permute_rows(w: np.ndarray, heads: int) -> np.ndarray:
    """Change the rows of q or k from Hugging Face's order to GGUF's llama order. Returns a copy.

    In each head, the rows i and i + dim / 2 rotate together. They become neighbours, 2 i and 2 i + 1.
    w: [rows, cols], or [rows] for a bias; any dtype. It holds whole heads; rows never leave their head, so some heads
    of a tensor can be permuted alone.
    """
    halves = w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:])
    return np.ascontiguousarray(np.swapaxes(halves, 1, 2)).reshape(w.shape)


def unpermute_rows(w: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `permute_rows`."""
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:])
    return np.ascontiguousarray(np.swapaxes(pairs, 1, 2)).reshape(w.shape)
