"""Converts tensor names, and the row order of q and k, between Hugging Face and GGUF."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bitsmith.models.arch.family import BEFORE, Family

Naming = Literal["hf", "gguf"]  # whose tensor names a file uses: Hugging Face's or GGUF's

_ENDS = {  # outside of layers, and without the prefix
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
}
_END_NAMES = {ours: theirs for theirs, ours in _ENDS.items()}
_LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
STACKED = {  # the first three in two stacks: gate_up_proj and down_proj
    **{f"mlp.experts.{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")},
    "mlp.gate": "ffn_gate_inp",
}
STACK = ".mlp.experts.gate_up_proj"  # end of the name of a stack of gates and ups
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_PREFIXES = ("model.language_model.", "language_model.model.", "model.")  # of the decoder's tensors, in wrappers too
_BUFFER = re.compile(r"(.+\.)?(rotary_emb\.(original_)?(inv_freq|cos_cached|sin_cached)|masked_bias)")
_TENSOR = re.compile(r"(.+)\.(weight|bias)")
_NUMBERED = re.compile(r"(0|[1-9]\d{0,4})\.(.+)")
_EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.(.+)")
# parts of a model beside its text decoder: towers for images and sound, and what joins them
_BESIDE = re.compile(
    r"(^|\.)(visual|vision\w*|audio\w*|embed_vision|embed_audio|multi_modal_projector|mm_projector|projector|patch_merger|connector|image_newline)\."
)
_DRAFTS = re.compile(r"(model\.)?mtp\.")


@dataclass(frozen=True)
class Names:
    """Hugging Face's and GGUF's names of a model's tensors, in both directions.

    layer: Hugging Face's name within a layer, without ".weight" -> GGUF's
    prefix: of Hugging Face's names of the decoder: "model.", or that of a wrapper ("model.language_model.")
    head: Hugging Face's name of the output matrix
    bare: Hugging Face's name within a layer -> GGUF's, with ".weight" or another ending, where the first has none
    """

    layer: Mapping[str, str]
    prefix: str = "model."
    head: str = "lm_head"
    bare: Mapping[str, str] = field(default_factory=dict)

    def gguf(self, hf_name: str) -> str | None:
        """The GGUF name of a Hugging Face tensor; None if the decoder has no such tensor (see `skipped`).

        The matrix of one expert is named as in a stack: "blk.0.ffn_up_exps.3.weight".
        """
        match = _TENSOR.fullmatch(hf_name)
        if match is None:
            found = _NUMBERED.fullmatch(hf_name.removeprefix(f"{self.prefix}layers."))
            return f"blk.{found[1]}.{self.bare[found[2]]}" if found is not None and found[2] in self.bare else None
        stem, kind = match.groups()
        if stem == self.head:
            return f"output.{kind}"
        if not stem.startswith(self.prefix):
            return None
        inner = stem.removeprefix(self.prefix)
        if inner in _ENDS:
            return f"{_ENDS[inner]}.{kind}"
        found = _NUMBERED.fullmatch(inner.removeprefix("layers.")) if inner.startswith("layers.") else None
        part = None if found is None else self._part(found[2])
        return None if found is None or part is None else f"blk.{found[1]}.{part}.{kind}"

    def _part(self, hf_part: str) -> str | None:
        found = self.layer.get(hf_part)
        expert = _EXPERT.fullmatch(hf_part) if found is None else None
        if expert is not None:
            stack = self.layer.get(f"{expert[1]}.{expert[3]}")
            return None if stack is None else f"{stack}.{int(expert[2])}"
        return found

    def hf(self, gguf_name: str) -> str | None:
        """The Hugging Face name of a GGUF tensor; None if there is none (rope_freqs.weight, stacks of experts)."""
        whole = _NUMBERED.fullmatch(gguf_name.removeprefix("blk.")) if self.bare else None
        bare = None if whole is None else next((theirs for theirs, ours in self.bare.items() if ours == whole[2]), None)
        if whole is not None and bare is not None:
            return f"{self.prefix}layers.{whole[1]}.{bare}"
        match = _TENSOR.fullmatch(gguf_name)
        if match is None:
            return None
        stem, kind = match.groups()
        if stem == "output":
            return f"{self.head}.{kind}"
        if stem in _END_NAMES:
            return f"{self.prefix}{_END_NAMES[stem]}.{kind}"
        found = _NUMBERED.fullmatch(stem.removeprefix("blk.")) if stem.startswith("blk.") else None
        part = None if found is None else self._hf_part(found[2])
        return None if found is None or part is None else f"{self.prefix}layers.{found[1]}.{part}.{kind}"

    def _hf_part(self, part: str) -> str | None:
        name, _, number = part.partition(".")
        for theirs, ours in self.layer.items():
            if ours == part and "experts." not in theirs:
                return theirs
            if number and ours == name and "experts." in theirs:
                return theirs.replace("experts.", f"experts.{number}.")
        return None

    def wrapped(self, tensors: Collection[str]) -> Names:
        """The names with the prefix that a file's tensors have."""
        prefix = next((each for each in _PREFIXES if f"{each}embed_tokens.weight" in tensors), self.prefix)
        head = "language_model.lm_head" if "language_model.lm_head.weight" in tensors else "lm_head"
        return replace(self, prefix=prefix, head=head)

    def stacked(self) -> Names:
        """The names that transformers 5 gives a layer's experts, in stacks, and their router."""
        own = {theirs: ours for theirs, ours in self.layer.items() if ours not in STACKED.values()}
        return replace(self, layer={**own, **STACKED})


def names_of(family: Family) -> Names:
    """The names of a family's tensors."""
    own = family.decoder.names if family.decoder else {}
    layer = {**_LINEARS, **_HEAD_NORMS, **family.norms.hf_names}
    bare = family.decoder.bare if family.decoder else {}
    return Names({**{theirs: ours for theirs, ours in layer.items() if ours not in own.values()}, **own}, bare=bare)


_USUAL = Names({**_LINEARS, **_HEAD_NORMS, **BEFORE.hf_names})


def is_stack(gguf_name: str) -> bool:
    """Whether a tensor is a stack of experts, by its GGUF name."""
    return gguf_name.endswith("_exps.weight")


def in_stack(gguf_name: str) -> tuple[str, int] | None:
    """The stack that the matrix of one expert belongs to, and its number: "blk.0.ffn_up_exps.3.weight"."""
    match = re.fullmatch(r"(.+_exps)\.(\d+)\.weight", gguf_name)
    return None if match is None else (f"{match[1]}.weight", int(match[2]))


def skipped(hf_name: str, *, tied: bool) -> bool:
    """Whether a tensor of a Hugging Face file is not needed.

    Old checkpoints store buffers of rotary embeddings and masks. With tied embeddings, some files store the embedding
    twice.
    """
    head = hf_name in ("lm_head.weight", "language_model.lm_head.weight")
    return _BUFFER.fullmatch(hf_name) is not None or (tied and head)


def beside_decoder(hf_name: str) -> bool:
    """Whether a tensor belongs to another part of the model than its text decoder: a tower for images or sound."""
    return _BESIDE.search(hf_name) is not None


def drafts(name: str, layers: int) -> bool:
    """Whether a tensor belongs to layers that draft tokens, behind the model's: mtp.* in folders, more blocks in GGUF.

    layers: number of the model's layers
    """
    block = re.match(r"blk\.(\d+)\.", name)
    return _DRAFTS.match(name) is not None if block is None else int(block[1]) >= layers


def gguf_name(hf_name: str) -> str | None:
    """The GGUF name of a Hugging Face tensor of a Llama; None if it has no such tensor (see `skipped`)."""
    return _USUAL.gguf(hf_name)


def hf_name(gguf_name: str) -> str | None:
    """The Hugging Face name of a GGUF tensor of a Llama; None if there is none (rope_freqs.weight)."""
    return _USUAL.hf(gguf_name)


def is_permuted(gguf_name: str) -> bool:
    """Whether the tensor is a weight or bias of q or k. Families with `Decoder.permuted` reorder its rows."""
    return re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", gguf_name) is not None


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
