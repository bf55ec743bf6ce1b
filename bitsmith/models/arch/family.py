"""What a row of the table of families is made of; see `bitsmith.models.arch.families`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

QKV = ("attn_q", "attn_k", "attn_v")
DENSE = (*QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Norms:
    """The norms of a layer: GGUF's name of each, and Hugging Face's; "" where there is none.

    They stand before and after the attention, and before and after the MLP.
    """

    before_attention: str = "attn_norm"
    after_attention: str = ""
    before_mlp: str = "ffn_norm"
    after_mlp: str = ""
    hf: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")

    @property
    def names(self) -> tuple[str, ...]:
        """GGUF's names of those that exist, in the order of computation."""
        return tuple(name for name in self.places if name)

    @property
    def hf_names(self) -> dict[str, str]:
        """Hugging Face's name within a layer -> GGUF's."""
        return {theirs: ours for theirs, ours in zip(self.hf, self.places, strict=True) if ours}

    @property
    def places(self) -> tuple[str, str, str, str]:
        """GGUF's names in the order of the fields, "" where there is no norm."""
        return self.before_attention, self.after_attention, self.before_mlp, self.after_mlp


BEFORE = Norms()
ONE = Norms(before_mlp="")  # attention and MLP run in parallel
AFTER = Norms(
    *("", "post_attention_norm", "", "post_ffw_norm"),
    hf=("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
)
BOTH = Norms(
    *("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    hf=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
GLM4_NORMS = replace(
    BOTH,
    hf=("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
)
SEED_NORMS = replace(BEFORE, before_mlp="post_attention_norm")  # llama.cpp's name of the norm before the MLP


@dataclass(frozen=True)
class ExpertRow:
    """How a family's config.json describes its experts.

    count: names that the field may have
    used, width: names of the fields
    normalize: whether the weights of the chosen experts are divided by their sum; None if norm_topk_prob says it
    normalize_default: default of norm_topk_prob
    gguf_normalize: the same in llama.cpp's code, which reads no key for it
    interleaved: True if Hugging Face stores one stack of gate and up, row by row in turn, as gpt-oss does
    switch: the field that says whether a model has experts; "" if all models of the family have them
    beside: True if the experts stand beside the MLP, with norms of their own
    fused: True if there is one stack of gate and up, the gate's rows first
    scaled: True if the router norms its input and multiplies it by a vector, and each expert's output has a multiplier
    shared: name of the field with the width of a shared expert that has a gate; "" if there is none
    """

    count: tuple[str, ...] = ("num_experts", "num_local_experts")
    used: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    normalize: bool | None = None
    normalize_default: bool = False
    gguf_normalize: bool = True
    interleaved: bool = False
    switch: str = ""
    beside: bool = False
    fused: bool = False
    scaled: bool = False
    shared: str = ""


@dataclass(frozen=True)
class Decoder:
    """What converting and running a family needs beside the rest of its row.

    hf_classes: class names in config.json's "architectures"; those after the first are wrappers and old names
    permuted: True if GGUF orders the rows of q and k so that rotary pairs are neighbours (interleaved rope)
    interleaved: True if Hugging Face has them as neighbours already
    gguf_biases: linears for which llama.cpp's loader of this family reads a bias
    optional_biases: whether the fields attention_bias and mlp_bias decide about biases: "" (neither), "attention",
        "all"; "use_bias" if this one field decides about all
    attention_bias: value of attention_bias if config.json does not say
    output_bias: the field that decides about the output projection's bias
    context, kv_heads, head_dim, window: transformers' defaults for fields that are missing in config.json. None if the
        default is computed (kv_heads = heads, head_dim = hidden / heads) or if there is none (window)
    theta, eps: defaults of rope_theta and rms_norm_eps
    partial: default of partial_rotary_factor
    local_rope: rotation of layers with a window, where it differs: "theta" (rope_local_base_freq), "unscaled"
    rope_fields: further fields of the rotation that this family reads: "partial_rotary_factor", "alpha",
        "llama_4_scaling_beta"
    rope: the rotation if config.json has neither rope_scaling nor rope_parameters; None: by theta alone
    rotates: which layers rotate: "all"; "no_rope_layers" (the field of this name, else all but every fourth);
        "windowed" (those with a window, if there is one)
    every: one layer of so many sees everything, if config.json gives no layer_types
    activation: "silu" or "gelu_tanh", of the gate
    norm_offset: True if Hugging Face stores norms without the 1 that is added to them
    norm_after_rotation: True if q and k are normed after their rotation
    embedding_root: True if embeddings are multiplied by the root of their width
    numbers: fields of config.json that give an attribute of `ModelConfig`: its name, and the default
    query_scalar: default of query_pre_attn_scalar, whose inverse root multiplies scores; 0 if it is not read
    score_scale: multiplier of scores in every model of the family; 0 for 1 / sqrt(head_dim)
    value_norm: True if values are normed, without a weight
    layer_scale: True if each layer's output is multiplied by a number
    layer_facts: True if head sizes, shared caches and embeddings of layers are read, see `hf_layers`
    experts: None for dense models
    router: how scores become weights: "softmax" over all experts, or over those that are "chosen"
    names: Hugging Face's name within a layer -> GGUF's, where they differ from those of Llama
    bare: names of Hugging Face's tensors within a layer that end without ".weight" -> GGUF's with their endings
    fields: further fields of config.json that this family reads
    gguf_keys: further keys that llama.cpp reads for this family, without "{arch}."
    wrapped: True if transformers has the family only inside of a model for images, so that no folder can be made of it
    ignores_window: True if llama.cpp has no sliding window for this family
    implied_window: True if GGUF files name the layers with a window only where one of `every` is not the rule
    fixed_scale: True if llama.cpp computes the scale of scores itself, and reads no key for it
    tokenizer: GGUF's name of the family's tokenizer, if that is BPE with byte fallback
    sections: transformers' default of mrope_section
    """

    hf_classes: tuple[str, ...]
    permuted: bool = False
    interleaved: bool = False
    gguf_biases: tuple[str, ...] = QKV
    optional_biases: Literal["", "attention", "all", "use_bias"] = ""
    attention_bias: bool = False
    output_bias: str = "attention_bias"
    context: int = 2048
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    theta: float = 10000.0
    eps: float = 1e-6
    partial: float = 1.0
    local_rope: Literal["", "theta", "unscaled"] = ""
    rope: Mapping[str, Any] | None = None
    rope_fields: tuple[str, ...] = ()
    rotates: Literal["all", "no_rope_layers", "windowed"] = "all"
    every: int = 0
    activation: str = "silu"
    norm_offset: bool = False
    norm_after_rotation: bool = False
    embedding_root: bool = False
    numbers: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    query_scalar: int = 0
    score_scale: float = 0.0
    value_norm: bool = False
    layer_scale: bool = False
    layer_facts: bool = False
    experts: ExpertRow | None = None
    router: Literal["softmax", "chosen"] = "softmax"
    names: Mapping[str, str] = field(default_factory=dict)
    bare: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    gguf_keys: tuple[str, ...] = ()
    wrapped: bool = False
    ignores_window: bool = True
    implied_window: bool = False
    fixed_scale: bool = False
    tokenizer: Literal["llama", "gemma4"] = "llama"
    sections: tuple[int, ...] = (24, 20, 20)


@dataclass(frozen=True)
class Family:
    """What the config.json of a family does not say.

    gguf: GGUF's general.architecture
    norms: the norms of a layer; `ONE` if attention and MLP run in parallel
    norm_bias: True if norms have a bias (LayerNorm)
    gated: True if the MLP has a gate beside its up projection
    fused_qkv, fused_gate: True if these matrices are stored as one
    qkv_bias, output_bias, mlp_bias: whether these linears have a bias; None if attention_bias or mlp_bias decides
    qk_norm: norms of q and k, over each head or over the whole width
    tied: default of tie_word_embeddings
    window: which layers have a window, if config.json gives a window and no layer_types; "by_flag": all, if
        use_sliding_window says so
    positions: rows of a learned position embedding beyond the context; None if there is no such embedding
    embedding_norm: True if there is a norm after the embedding
    sinks: True if each head has a learned attention sink
    expert_bias: True if experts and their router have biases
    score_bias: True if a bias is added to the scores that choose experts
    output_gate: True if the rows of q hold a gate of the attention's output, too, head by head
    delta: whether some layers have a gated delta net, and how Hugging Face stores it: "apart" (q, k and v, z, b and a
        are four matrices, and GGUF tiles value heads), "fused" (two matrices, the rows of a key head together)
    widening: width of the MLP divided by the hidden size, if config.json does not say
    context: default context, in tokens
    defaults: transformers' defaults of further fields
    decoder: None if bitsmith cannot convert and run the family
    """

    gguf: str
    norms: Norms = BEFORE
    norm_bias: bool = False
    gated: bool = True
    fused_qkv: bool = False
    fused_gate: bool = False
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: Literal["", "head", "whole"] = ""
    tied: bool = False
    window: Literal["never", "all", "alternating", "pattern", "by_field", "by_flag"] = "never"
    positions: int | None = None
    embedding_norm: bool = False
    sinks: bool = False
    expert_bias: bool = False
    score_bias: bool = False
    output_gate: bool = False
    delta: Literal["", "apart", "fused"] = ""
    widening: int = 4
    context: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    decoder: Decoder | None = None
